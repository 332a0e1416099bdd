{{/* Parts of NetworkPolicies. */}}

{{/* (dict "root" $ "name" "router" "selector" labels) */}}
{{- define "kvasir.policyHead" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "kvasir.name" .root }}{{ with .name }}-{{ . }}{{ end }}
  labels:
    {{- include "kvasir.labels" .root | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- .selector | nindent 6 }}
{{- end }}

{{/* A peer: pods of the release. (dict "root" $ "component" "router") */}}
{{- define "kvasir.peer" -}}
- podSelector:
    matchLabels:
      {{- include "kvasir.componentSelector" . | nindent 6 }}
{{- end }}

{{/* Where Redis is: our own, or anywhere on the ports of the external one. */}}
{{- define "kvasir.redisEgress" -}}
{{- if .Values.redis.bundled.enabled }}
- to:
    {{- include "kvasir.peer" (dict "root" . "component" "redis") | nindent 4 }}
  ports:
    - port: 6379
{{- else }}
- ports:
    {{- range .Values.redis.external.ports }}
    - port: {{ . }}
    {{- end }}
{{- end }}
{{- end }}

{{/* Beyond the cluster: traces, the model's download, and what the values add. */}}
{{- define "kvasir.outsideEgress" -}}
{{- with ((.Values.cluster.telemetry | default dict).otlp_endpoint) }}
- ports:
    - port: {{ regexFind "[0-9]+$" (trimSuffix "/" .) | default "4317" }}
{{- end }}
{{- if eq .Values.model.source "download" }}
- ports:
    - port: 443
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What workers listen on for each other. NCCL and Gloo know a range only through the kernel's. */}}
{{- define "kvasir.transferPorts" -}}
{{- with (.Values.cluster.ports | default dict).transfer }}
- port: {{ splitList "-" . | first }}
  endPort: {{ splitList "-" . | last }}
{{- else }}
- port: 1024
  endPort: 65535
{{- end }}
{{- end }}
