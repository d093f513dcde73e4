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

{{- define "workqueue-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "workqueue-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: workqueue-operator
app.kubernetes.io/managed-by: {{ .Release.Service }}
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

{{/* What the operator may do where WorkQueues are: nothing that it does not use. */}}
{{- define "workqueue-operator.rules" -}}
- apiGroups: [workqueue.dev]
  resources: [workqueues]
  verbs: [get, list, watch, patch]
- apiGroups: [workqueue.dev]
  resources: [workqueues/status]
  verbs: [patch]
- apiGroups: [workqueue.dev]
  resources: [workqueues/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# Read when workers have agreed to leave: whether Kubernetes has seen which.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
# Asked only where a workloadRef is.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, patch]
# Read by name only: the Secret that a WorkQueue refers to. Created: the key for retirement calls.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# Which release serves a namespace: its label, and what the chart says in claims.yaml.
{{- if .Values.watchNamespaces }}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [workqueue.dev]
  verbs: [get]
{{- else }}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [workqueue.dev]
  verbs: [list]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [clusterroles]
  resourceNames: [workqueue.dev]
  verbs: [get]
{{- end }}
{{- end }}
