#!/bin/sh
# An exec handler: one process for each message, in any language.
#
#     workqueue run --queue words --declare --exec ./count-words.sh
#     workqueue send --queue words 'how many words are these'
#
# The body is on standard input, headers and properties are in the environment. The exit code is the outcome:
# 0 done, 75 try again later, 65 never try again (dead letter), any other: try again later.
set -eu

text=$(cat)
if [ -z "$text" ]; then
    echo "the message is empty" >&2 # the last lines of standard error go into the dead letter's headers
    exit 65
fi
if [ "${WORKQUEUE_HEADER_NOT_YET:-}" = yes ] && [ "$WORKQUEUE_MESSAGE_ATTEMPT" = 1 ]; then
    echo "not yet" >&2
    exit 75
fi
echo "$(printf '%s' "$text" | wc -w | tr -d ' ') words in attempt $WORKQUEUE_MESSAGE_ATTEMPT"
