{{/*
cluster.yaml as our processes read it: the value `cluster`, and what the chart knows better. JSON.
*/}}
{{- define "kvasir.config" -}}
{{- $config := deepCopy .Values.cluster }}
{{- if not $config.name }}{{ $_ := set $config "name" (include "kvasir.name" .) }}{{ end }}
{{- $_ := set $config "redis" (include "kvasir.redis" . | fromJson) }}
{{- $router := $config.router | default dict }}
{{- $any := "0.0.0.0" }}
{{- $_ := set $router "http" (dict "host" $any "port" 8000) }}
{{- $_ := set $router "admin" (dict "host" $any "port" 8001) }}
{{- $_ := set $router "grpc" (dict "host" $any "port" 9000) }}
{{- if .Values.tls.secret }}
{{- $tls := dict "cert" "/etc/kvasir-tls/tls.crt" "key" "/etc/kvasir-tls/tls.key" }}
{{- if .Values.tls.clientCa }}{{ $_ := set $tls "client_ca" "/etc/kvasir-tls/ca.crt" }}{{ end }}
{{- $_ := set $router "tls" $tls }}
{{- end }}
{{- if .Values.apiKeys.secret }}
{{- $keys := dict "file" (printf "/etc/kvasir-keys/%s" .Values.apiKeys.key) "private_cache" .Values.apiKeys.privateCache }}
{{- with .Values.apiKeys.adminKey }}{{ $_ := set $keys "admin_key_file" (printf "/etc/kvasir-keys/%s" .) }}{{ end }}
{{- $_ := set $router "api_keys" $keys }}
{{- end }}
{{- $_ := set $config "router" $router }}
{{- if .Values.otlpHeaders.secret }}
{{- $file := printf "/etc/kvasir-otlp/%s" .Values.otlpHeaders.key }}
{{- $_ := set $config "telemetry" (merge (dict "otlp_headers_file" $file) ($config.telemetry | default dict)) }}
{{- end }}
{{- if include "kvasir.plannerMode" . }}
{{- $routers := list (printf "%s-router:9000" (include "kvasir.name" .)) }}
{{- $_ := set $config.planner "routers" $routers }}
{{- $_ := set $config.planner "host" $any }}
{{- $_ := set $config.planner "metrics_port" 8002 }}
{{- end }}
{{- if .Values.internalTls.secret }}
{{- $folder := "/etc/kvasir-internal" }}
{{- $_ := set $config "internal_tls" (dict "cert" (printf "%s/tls.crt" $folder) "key" (printf "%s/tls.key" $folder) "ca" (printf "%s/ca.crt" $folder)) }}
{{- end }}
{{- toJson $config }}
{{- end }}

{{/* The section `redis`: the bundled server, or the external one with its secrets as files. */}}
{{- define "kvasir.redis" -}}
{{- $redis := deepCopy .Values.redis.external.endpoint }}
{{- $secrets := .Values.redis.external.secret }}
{{- if .Values.redis.bundled.enabled }}
{{- $redis = dict "url" (printf "redis://%s-redis:6379/0" (include "kvasir.name" .)) }}
{{- $secrets = .Values.redis.bundled.secret }}
{{- end }}
{{- if $secrets.name }}
{{- $folder := "/etc/kvasir-redis" }}
{{- with $secrets.passwordKey }}{{ $_ := set $redis "password_file" (printf "%s/%s" $folder .) }}{{ end }}
{{- with $secrets.caKey }}{{ $_ := set $redis "ca" (printf "%s/%s" $folder .) }}{{ end }}
{{- if $secrets.certKey }}
{{- $_ := set $redis "cert" (printf "%s/%s" $folder $secrets.certKey) }}
{{- $_ := set $redis "key" (printf "%s/%s" $folder $secrets.keyKey) }}
{{- end }}
{{- end }}
{{- toJson $redis }}
{{- end }}

{{/* The Secret that the processes' Redis files come from, or nothing. */}}
{{- define "kvasir.redisSecret" -}}
{{- if .Values.redis.bundled.enabled }}{{ .Values.redis.bundled.secret.name }}
{{- else }}{{ .Values.redis.external.secret.name }}{{ end }}
{{- end }}

{{/* Seconds that a worker told to stop may take for what it holds. */}}
{{- define "kvasir.graceSeconds" -}}
{{ .Values.cluster.grace_s | default 20 | float64 | ceil | int }}
{{- end }}

{{/* Seconds that requests in flight have when a router stops. */}}
{{- define "kvasir.shutdownSeconds" -}}
{{- $limits := (.Values.cluster.router | default dict).limits | default dict }}
{{- $limits.shutdown_s | default 3 | float64 | ceil | int }}
{{- end }}
