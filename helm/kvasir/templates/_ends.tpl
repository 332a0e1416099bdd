{{/* How long pods may take to leave; more than what they need for it. */}}

{{/* preStop, once Python has started, drains for grace_s; what is left then has grace_s more after SIGTERM. */}}
{{- define "kvasir.workerTermination" -}}
{{ add (mul 2 (include "kvasir.graceSeconds" . | int)) 30 }}
{{- end }}

{{/* Endpoints are told first, then requests in flight end. */}}
{{- define "kvasir.routerTermination" -}}
{{ add (include "kvasir.shutdownSeconds" . | int) .Values.router.preStopSeconds 10 }}
{{- end }}
