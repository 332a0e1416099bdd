{{/* What every pod and container of ours has. */}}

{{/* (dict "root" $ "account" "worker" "token" false) */}}
{{- define "kvasir.podSecurity" -}}
serviceAccountName: {{ include "kvasir.name" .root }}-{{ .account }}
automountServiceAccountToken: {{ .token }}
enableServiceLinks: false
{{- with include "kvasir.pullSecrets" .root }}
{{ . }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "sysctls" true) */}}
{{- define "kvasir.podContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "kvasir.containerContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Image, command and security of a container. (dict "root" $ "component" c "gpu" bool) */}}
{{- define "kvasir.container" -}}
image: {{ include "kvasir.image" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "kvasir.containerContext" .root | nindent 2 }}
{{- end }}

{{/* Environment that every process has; nothing in it says how it behaves. */}}
{{- define "kvasir.env" -}}
- name: HOME
  value: /tmp
- name: HF_HUB_OFFLINE
  value: "1"
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end }}

{{/* Where the process finds its files. */}}
{{- define "kvasir.mounts" -}}
- name: config
  mountPath: /etc/kvasir
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if include "kvasir.redisSecret" . }}
- name: redis-secret
  mountPath: /etc/kvasir-redis
  readOnly: true
{{- end }}
{{- if .Values.internalTls.secret }}
- name: internal-tls
  mountPath: /etc/kvasir-internal
  readOnly: true
{{- end }}
{{- with include "kvasir.modelMount" . }}
{{ . }}
{{- end }}
{{- end }}

{{- define "kvasir.volumes" -}}
- name: config
  configMap:
    name: {{ include "kvasir.name" . }}
- name: tmp
  emptyDir:
    sizeLimit: {{ eq .Values.mode "ray" | ternary "20Gi" "2Gi" }}
{{- with include "kvasir.redisSecret" . }}
- name: redis-secret
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.internalTls.secret }}
- name: internal-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with include "kvasir.modelVolume" . }}
{{ . }}
{{- end }}
{{- end }}

{{/* TLS, API keys and the collector's token: for the router, and for who speaks to it. */}}
{{- define "kvasir.doorMounts" -}}
{{- if .Values.tls.secret }}
- name: tls
  mountPath: /etc/kvasir-tls
  readOnly: true
{{- end }}
{{- if .Values.apiKeys.secret }}
- name: api-keys
  mountPath: /etc/kvasir-keys
  readOnly: true
{{- end }}
{{- if .Values.otlpHeaders.secret }}
- name: otlp-headers
  mountPath: /etc/kvasir-otlp
  readOnly: true
{{- end }}
{{- end }}

{{- define "kvasir.doorVolumes" -}}
{{- with .Values.tls.secret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.apiKeys.secret }}
- name: api-keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.otlpHeaders.secret }}
- name: otlp-headers
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* Node selector, tolerations, affinity, spread, priority of `.k8s`. Replicas of one kind keep
apart where there is room, unless something else is said. (dict "k8s" k8s "labels" labels) */}}
{{- define "kvasir.scheduling" -}}
{{- with .k8s.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .k8s.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .k8s.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if .k8s.topologySpreadConstraints }}
  {{- toYaml .k8s.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- .labels | nindent 8 }}
{{- end }}
{{- with .k8s.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/*
Changes with what the process reads of the config, and so rolls its pods: not with sizes of pools,
which change while they run. (dict "root" $ "component" c "pool" $pool)
*/}}
{{- define "kvasir.stamp" -}}
{{- $config := include "kvasir.config" .root | fromJson }}
{{- $pools := list }}
{{- range $pool := include "kvasir.poolList" .root | fromJsonArray }}
{{- if or (not $.pool) (eq $pool.name ($.pool | default dict).name) }}
{{- $pools = append $pools (omit $pool "replicas" "min" "max") }}
{{- end }}
{{- end }}
{{- if eq .component "planner" }}{{ $pools = include "kvasir.poolList" .root | fromJsonArray }}{{ end }}
{{- $others := list "slo" "router" "planner" }}
{{- if eq .component "router" }}{{ $others = list "planner" }}{{ end }}
{{- if eq .component "planner" }}{{ $others = list }}{{ end }}
{{- range $others }}{{ $_ := unset $config . }}{{ end }}
{{- $_ := set $config "pools" $pools }}
kvasir.dev/config: {{ dict "config" $config "weights" .root.Values.model | toJson | sha256sum | trunc 16 }}
{{- end }}
