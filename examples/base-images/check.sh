#!/usr/bin/env bash
# Build one of these images with docker, and let it handle a message: check.sh cuda|alpine|java, after
# `make distribution`.
set -euo pipefail
name=$1
here=$(cd "$(dirname "$0")" && pwd)
context=$(mktemp --directory)
trap 'docker rm --force rabbitmq >/dev/null; rm -r "$context"' EXIT
cp "$here"/../../build/distribution/* "$here/handlers.py" "$here/Handler.java" "$context"
docker build --quiet --file "$here/$name.Dockerfile" --tag "worker-$name" "$context"
docker run --detach --network host --name rabbitmq docker.io/library/rabbitmq:4 >/dev/null
for _ in $(seq 60); do
  docker exec rabbitmq rabbitmq-diagnostics --quiet check_port_listener 5672 && break
  sleep 1
done
export WORKQUEUE_URL=amqp://guest:guest@localhost:5672/
worker() { docker run --rm --network host --env WORKQUEUE_URL "worker-$name" workqueue "$@"; }
case $name in
  java) handler=(--exec java Handler.java) ;;
  *) handler=(handlers:handle) ;;
esac
worker run --queue hello --declare --until-empty "${handler[@]}" # declares the queue
worker send --queue hello 'hello world'
worker run --queue hello --declare --until-empty "${handler[@]}" | tee "$context/output"
grep --quiet 'HELLO WORLD' "$context/output"
