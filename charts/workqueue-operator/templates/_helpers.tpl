{{/* The name of everything in this release. */}}
{{- define "workqueue-operator.fullname" -}}
{{- $name := include "workqueue-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}
{{- end }}
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
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
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
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
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
