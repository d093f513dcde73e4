{{/* Sets each value that is null, or that an upgrade with --reuse-values does not have, to its default. Each template
begins with it. YAML makes null of a section whose lines are comments. A list or a free map that is null is empty. */}}
{{- define "workqueue-operator.defaults" -}}
{{- $defaults := .Files.Get "files/defaults.json" | fromJson }}
{{- include "workqueue-operator.fill" (list .Values (index $defaults "never null") $defaults.all) }}
{{- end }}

{{- define "workqueue-operator.fill" -}}
{{- $values := index . 0 }}
{{- $all := index . 2 }}
{{- range $key, $default := index . 1 }}
{{- $value := index $values $key }}
{{- if kindIs "invalid" $value }}
{{- $_ := set $values $key (index $all $key) }}
{{- else if kindIs "map" $default }}
{{- include "workqueue-operator.fill" (list $value $default (index $all $key)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name of everything in this release. */}}
{{- define "workqueue-operator.fullname" -}}
{{- $full := .Values.fullnameOverride }}
{{- if not $full }}
{{- $name := include "workqueue-operator.name" . }}
{{- /* Two aliases of one umbrella chart may both be contained in the release's name. */}}
{{- $alone := and (eq .Chart.Name "workqueue-operator") (contains $name .Release.Name) }}
{{- $full = $alone | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- /* A release may be named 2.a, a Service not: its name has no dot and begins with a letter. */}}
{{- $full = regexReplaceAll "^([0-9])" ($full | replace "." "-") "wq-${1}" }}
{{- end }}
{{- if or (eq .Chart.Name "workqueue-operator") .Values.fullnameOverride }}
{{- $full | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- include "workqueue-operator.fitted" (list 53 $full) }}
{{- end }}
{{- end }}

{{/* A name with a limit of characters. Of two aliases with the same beginning, the hash tells them apart. */}}
{{- define "workqueue-operator.fitted" -}}
{{- $most := first . }}
{{- $name := last . }}
{{- if le (len $name) $most }}
{{- $name | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" ($name | trunc (sub $most 9 | int) | trimSuffix "-") ($name | sha256sum | trunc 8) }}
{{- end }}
{{- end }}

{{/* The name in claims and in the label workqueue.dev/operator. An umbrella chart may contain this chart several times,
each with an alias. Their claims must differ: otherwise two operators would serve one namespace. */}}
{{- define "workqueue-operator.release" -}}
{{- if eq .Chart.Name "workqueue-operator" }}
{{- .Release.Name }}
{{- else }}
{{- include "workqueue-operator.fitted" (list 63 (printf "%s-%s" .Release.Name .Chart.Name)) }}
{{- end }}
{{- end }}

{{/* The beginning of the names of cluster-scoped objects. Releases in several namespaces may have the same name. A
namespace has no dot, so no other release has the same beginning. */}}
{{- define "workqueue-operator.clusterName" -}}
{{- printf "%s.%s" .Release.Namespace (include "workqueue-operator.fullname" .) }}
{{- end }}

{{- define "workqueue-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* The labels that select the pods of a component. The argument has `root` and `component`. */}}
{{- define "workqueue-operator.selectorLabelsOf" -}}
app.kubernetes.io/name: {{ include "workqueue-operator.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The labels of an object of a component. The argument has `root`, `component`, and may have `more` labels. */}}
{{- define "workqueue-operator.labelsOf" -}}
{{- $own := include "workqueue-operator.selectorLabelsOf" . | fromYaml }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/part-of" "workqueue-operator" }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- merge $own (.more | default dict) (.root.Values.commonLabels | default dict) | toYaml }}
{{- end }}

{{- define "workqueue-operator.selectorLabels" -}}
{{- include "workqueue-operator.selectorLabelsOf" (dict "root" . "component" "operator") }}
{{- end }}

{{- define "workqueue-operator.labels" -}}
{{- include "workqueue-operator.labelsOf" (dict "root" . "component" "operator") }}
{{- end }}

{{/* The objects of the web page. */}}
{{- define "workqueue-operator.pageName" -}}
{{- printf "%s-page" (include "workqueue-operator.fullname" .) }}
{{- end }}

{{- define "workqueue-operator.pageSelectorLabels" -}}
{{- include "workqueue-operator.selectorLabelsOf" (dict "root" . "component" "page") }}
{{- end }}

{{- define "workqueue-operator.pageLabels" -}}
{{- include "workqueue-operator.labelsOf" (dict "root" . "component" "page") }}
{{- end }}

{{- define "workqueue-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "workqueue-operator.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "workqueue-operator.image" -}}
{{- /* The chart of a release names the image that it was released with. Another repository or tag is another image. */}}
{{- $released := index .Chart.Annotations "workqueue.dev/image" | default "" }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else if and (not .Values.image.tag) (hasPrefix (printf "%s@" .Values.image.repository) $released) }}
{{- $released }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "workqueue-operator.workerImage" -}}
{{- .Values.workerImage | default (include "workqueue-operator.image" .) }}
{{- end }}

{{/* A list. Some charts write the entries of `global.imagePullSecrets` as names, others as objects. */}}
{{- define "workqueue-operator.imagePullSecrets" -}}
{{- $secrets := .Values.imagePullSecrets | default list }}
{{- range (.Values.global).imagePullSecrets }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- uniq $secrets | toYaml }}
{{- end }}

{{/* What the pods of operator, page and test have in common. */}}
{{- define "workqueue-operator.podSettings" -}}
enableServiceLinks: false
{{- with include "workqueue-operator.imagePullSecrets" . | fromYamlArray }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . | quote }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $security := .Values.podSecurityContext | default dict }}
{{- if eq .Values.podSecurity "Platform" }}
{{- $security = omit $security "runAsUser" "runAsGroup" "fsGroup" }}
{{- end }}
securityContext:
  {{- toYaml $security | nindent 2 }}
nodeSelector:
  {{- merge (dict) (.Values.nodeSelector | default dict) (dict "kubernetes.io/os" "linux") | toYaml | nindent 2 }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The annotations of a pod. The argument has `root` and the name of the pod's container. */}}
{{- define "workqueue-operator.podAnnotations" -}}
{{- $own := dict "kubectl.kubernetes.io/default-container" .container }}
{{- /* Otherwise the cluster autoscaler removes no node that has such a pod. */}}
{{- $_ := set $own "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes" "tmp" }}
{{- merge (dict) (.root.Values.podAnnotations | default dict) $own | toYaml }}
{{- end }}

{{/* The variables of a container. A variable of `extraEnv` replaces the chart's own of the same name: server-side apply
refuses a name twice. The argument has `root` and `own`. */}}
{{- define "workqueue-operator.env" -}}
{{- $env := list }}
{{- $extra := .root.Values.extraEnv | default list }}
{{- $names := list }}
{{- range $extra }}
{{- $names = append $names .name }}
{{- end }}
{{- range .own }}
{{- if not (has .name $names) }}
{{- $env = append $env . }}
{{- end }}
{{- end }}
{{- concat $env $extra | toYaml }}
{{- end }}

{{/* The IP families of a Service. */}}
{{- define "workqueue-operator.ipFamilies" -}}
{{- with (.Values.service).ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with (.Values.service).ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "workqueue-operator.leaseName" -}}
{{- .Values.leaderElection.leaseName | default (include "workqueue-operator.fullname" .) }}
{{- end }}
