{{/*
A worker listens once its model is loaded and warm, and is SERVING as kvasir.v1.Worker once it is
paired with its peers and while it does not drain. Alive is: its event loop has its turn, which
/metrics needs too. With TLS inside the kubelet has no certificate to show, and asks the metrics
port: /ready says the same.
(dict "root" $ "startupSeconds" 900)
*/}}
{{- define "kvasir.workerProbes" -}}
{{- $tls := .root.Values.internalTls.secret }}
{{- $port := (.root.Values.cluster.ports | default dict).worker | default 9100 }}
{{- $alive := $tls | empty | ternary (printf "grpc:\n  port: %v" $port) "httpGet:\n  port: metrics\n  path: /metrics" }}
{{- $ready := $tls | empty | ternary (printf "%s\n  service: kvasir.v1.Worker" $alive) "httpGet:\n  port: metrics\n  path: /ready" }}
startupProbe:
  {{- $ready | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ divf .startupSeconds 5 | ceil | int }}
readinessProbe:
  {{- $ready | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  {{- $alive | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{/* Ready while somebody can prefill and somebody can decode. */}}
{{- define "kvasir.routerReady" -}}
httpGet:
  port: http
  path: /health
  scheme: {{ empty .Values.tls.secret | ternary "HTTP" "HTTPS" }}
periodSeconds: 2
timeoutSeconds: 5
{{- end }}

{{/* A router that has nobody to send to is as alive as any. */}}
{{- define "kvasir.routerProbes" -}}
startupProbe:
  tcpSocket:
    port: grpc
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 60
readinessProbe:
  {{- include "kvasir.routerReady" . | nindent 2 }}
  failureThreshold: 2
livenessProbe:
  httpGet:
    port: admin
    path: /metrics
    scheme: {{ empty .Values.tls.secret | ternary "HTTP" "HTTPS" }}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{/* A planner that waits for the Lease is as healthy as the one that has it. */}}
{{- define "kvasir.plannerProbes" -}}
{{- range $probe, $failures := dict "startupProbe" 60 "readinessProbe" 3 "livenessProbe" 6 }}
{{ $probe }}:
  httpGet:
    port: metrics
    path: /metrics
  periodSeconds: {{ eq $probe "startupProbe" | ternary 2 10 }}
  timeoutSeconds: 5
  failureThreshold: {{ $failures }}
{{- end }}
{{- end }}
