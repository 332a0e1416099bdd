{{/* Names and labels. Every object is called after the release, so the planner finds its own. */}}

{{- define "kvasir.name" -}}
{{ .Release.Name | replace "." "-" }}
{{- end }}

{{- define "kvasir.labels" -}}
{{ include "kvasir.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What all our pods share. */}}
{{- define "kvasir.selector" -}}
app.kubernetes.io/name: kvasir
app.kubernetes.io/instance: {{ include "kvasir.name" . }}
{{- end }}

{{/* (dict "root" $ "component" "router") */}}
{{- define "kvasir.componentSelector" -}}
{{ include "kvasir.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* (dict "root" $ "component" "router" "gpu" false): the image with or without CUDA */}}
{{- define "kvasir.image" -}}
{{- $image := .root.Values.image }}
{{- $kind := .gpu | ternary "cuda" "cpu" }}
{{- $own := index $image $kind }}
{{- $tag := $own.tag | default (printf "%s-%s" .root.Chart.AppVersion $kind) }}
{{- $image.repository }}:{{ $tag }}{{ with $own.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "kvasir.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
