{{- define "pondhawk.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "pondhawk" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-pondhawk" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "component" "node") */}}
{{- define "pondhawk.selector" -}}
app.kubernetes.io/name: pondhawk
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "pondhawk.labels" -}}
{{ include "pondhawk.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pondhawk
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "pondhawk.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "pondhawk.schedulerHost" -}}
{{ include "pondhawk.fullname" . }}-scheduler.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* "true" where the schedulers' state is in a Secret. */}}
{{- define "pondhawk.sharedState" -}}
{{- if or .Values.scheduler.stateSecret (gt (int .Values.scheduler.replicas) 1) -}}true{{- end -}}
{{- end -}}

{{/* Of several schedulers each by its own name: a task belongs to one of them. */}}
{{- define "pondhawk.joinAddress" -}}
{{- if .Values.scheduler.enabled -}}
{{- $host := include "pondhawk.schedulerHost" . -}}
{{- $addresses := list -}}
{{- if gt (int .Values.scheduler.replicas) 1 -}}
{{- range $index := until (int .Values.scheduler.replicas) -}}
{{- $addresses = append $addresses (printf "%s-scheduler-%d.%s:65100" (include "pondhawk.fullname" $) $index $host) -}}
{{- end -}}
{{- else -}}
{{- $addresses = append $addresses (printf "%s:65100" $host) -}}
{{- end -}}
{{ join "," $addresses }}
{{- else -}}
{{ .Values.join.address }}
{{- end -}}
{{- end -}}

{{- define "pondhawk.joinSecret" -}}
{{ .Values.join.existingSecret | default (printf "%s-join" (include "pondhawk.fullname" .)) }}
{{- end -}}

{{/* Comma separated; "" where the scheduler's own default is meant. */}}
{{- define "pondhawk.hosts" -}}
{{- $intercept := get .Values.node.config "intercept" | default dict -}}
{{- join "," (.Values.scheduler.hosts | default (get $intercept "hosts") | default list) -}}
{{- end -}}

{{- define "pondhawk.admin" -}}
{{- ternary "0.0.0.0:65002" "127.0.0.1:65002" .Values.monitoring.enabled -}}
{{- end -}}

{{/* What nodes and seeds have in common; (dict "root" $ "drain" 30) */}}
{{- define "pondhawk.baseConfig" -}}
data_dir: /data
drain: {{ .drain }}s
log: {format: json}
listen: {admin: {{ include "pondhawk.admin" .root | quote }}}
scheduler:
  join: {{ include "pondhawk.joinAddress" .root | quote }}
  token: /run/pondhawk/join/token
{{- with .root.Values.tracing.endpoint }}
tracing: {endpoint: {{ . | quote }}, sample: {{ $.root.Values.tracing.sample }}}
{{- end }}
{{- end -}}

{{- define "pondhawk.nodeConfig" -}}
{{- $config := fromYaml (include "pondhawk.baseConfig" (dict "root" . "drain" .Values.node.drainSeconds)) -}}
{{- $_ := set $config "intercept" (dict "enabled" "on" "cgroup" "/host/cgroup") -}}
{{- toYaml (mustMergeOverwrite $config (deepCopy .Values.node.config)) -}}
{{- end -}}

{{- define "pondhawk.seedConfig" -}}
{{- $config := fromYaml (include "pondhawk.baseConfig" (dict "root" . "drain" .Values.seeds.drainSeconds)) -}}
{{- $_ := set $config "intercept" (dict "enabled" "off") -}}
{{- $_ := set $config "swarm" (dict "seed" true) -}}
{{- $_ := set $config.listen "admin" "0.0.0.0:65002" -}}
{{- toYaml (mustMergeOverwrite $config (deepCopy .Values.seeds.config)) -}}
{{- end -}}

{{/* The probes of a node; "" for its pod's own address, as kubelet reaches it. */}}
{{- define "pondhawk.probes" -}}
{{- $host := "" -}}
{{- if . }}{{ $host = printf ", host: %s" . }}{{ end -}}
# A store of many files is looked through first, and after an unclean stop hashed.
startupProbe:
  httpGet: {path: /healthz, port: 65002{{ $host }}}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /healthz, port: 65002{{ $host }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: 65002{{ $host }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end -}}

{{- define "pondhawk.podSettings" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "pondhawk.claim" -}}
- metadata: {name: data}
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources: {requests: {storage: {{ .size }}}}
{{- end -}}
