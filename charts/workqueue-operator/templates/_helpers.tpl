{{/* The name of everything in this release. */}}
{{- define "workqueue-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "workqueue-operator.selectorLabels" -}}
app.kubernetes.io/name: workqueue-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "workqueue-operator.chartLabel" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "workqueue-operator.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: workqueue-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "workqueue-operator.labels" -}}
{{ include "workqueue-operator.chartLabel" . }}
{{ include "workqueue-operator.selectorLabels" . }}
{{ include "workqueue-operator.commonLabels" . }}
{{- end }}

{{/* The objects of the web page. */}}
{{- define "workqueue-operator.pageName" -}}
{{- printf "%s-page" (include "workqueue-operator.fullname" .) }}
{{- end }}

{{- define "workqueue-operator.pageSelectorLabels" -}}
app.kubernetes.io/name: workqueue-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: page
{{- end }}

{{- define "workqueue-operator.pageLabels" -}}
{{ include "workqueue-operator.chartLabel" . }}
{{ include "workqueue-operator.pageSelectorLabels" . }}
{{ include "workqueue-operator.commonLabels" . }}
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

{{- define "workqueue-operator.leaseName" -}}
{{- .Values.leaderElection.leaseName | default (include "workqueue-operator.fullname" .) }}
{{- end }}
