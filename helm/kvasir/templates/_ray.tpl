{{/* Pods of a Ray cluster: the head, the router's, and a group for each pool. */}}

{{- define "kvasir.raySelector" -}}
{{ include "kvasir.selector" . }}
kvasir.dev/ray: "true"
{{- end }}

{{/* Nothing of ours goes through Ray's object store. It lies in /dev/shm, which is for KV, and by
default would take a third of the memory. */}}
{{- define "kvasir.rayStore" -}}
object-store-memory: "104857600"
{{- end }}

{{/* Ray's agent on each node answers for its raylet; the Serve proxy, which KubeRay would ask, is off. */}}
{{- define "kvasir.rayletProbe" -}}
httpGet:
  port: 52365
  path: /api/local_raylet_healthz
periodSeconds: 5
timeoutSeconds: 5
{{- end }}

{{/*
Seconds in which Ray, told to stop, moves what runs here to other pods, which may have to load the
model first; it ends sooner where all has moved. A router loads no weights.
(dict "root" $ "component" c)
*/}}
{{- define "kvasir.rayDrainSeconds" -}}
{{- $seconds := .root.Values.ray.drainSeconds | int }}
{{- eq .component "router" | ternary (min $seconds 120) $seconds }}
{{- end }}

{{- define "kvasir.rayTermination" -}}
{{ eq .component "head" | ternary 60 (add (include "kvasir.rayDrainSeconds" . | int) 30) }}
{{- end }}

{{/* Of volumes or mounts. */}}
{{- define "kvasir.withoutModel" -}}
{{- $kept := list }}
{{- range . }}{{ if ne .name "model" }}{{ $kept = append $kept . }}{{ end }}{{ end }}
{{- toYaml $kept }}
{{- end }}

{{/*
The pod template of a group. (dict "root" $ "component" c "pool" name or "" "gpu" bool "k8s" values
"resources" yaml "ports" yaml "readiness" yaml)
*/}}
{{- define "kvasir.rayPod" -}}
{{- $labels := printf "%s\nkvasir.dev/ray: \"true\"" (include "kvasir.componentSelector" .) }}
{{- if .pool }}{{ $labels = printf "%s\nkvasir.dev/pool: %s" $labels .pool }}{{ end }}
{{- $head := eq .component "head" }}
{{- $mounts := include "kvasir.mounts" .root | fromYamlArray }}
{{- $volumes := include "kvasir.volumes" .root | fromYamlArray }}
{{- if $head }}
{{- /* It decides and computes nothing; a claim of one node would hold it there. */}}
{{- $mounts = include "kvasir.withoutModel" $mounts | fromYamlArray }}
{{- $volumes = include "kvasir.withoutModel" $volumes | fromYamlArray }}
{{- end }}
metadata:
  labels:
    {{- $labels | nindent 4 }}
    {{- with .k8s.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    kvasir.dev/mode: ray
    {{- with .k8s.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  {{- if not $head }}
  {{- include "kvasir.podSecurity" (dict "root" .root "account" (empty .pool | ternary "router" "worker") "token" false) | nindent 2 }}
  {{- else }}
  # KubeRay gives the head an account of its own, for the autoscaler.
  enableServiceLinks: false
  {{- include "kvasir.pullSecrets" .root | nindent 2 }}
  {{- end }}
  securityContext:
    {{- include "kvasir.podContext" .root | nindent 4 }}
  {{- with .k8s.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- include "kvasir.scheduling" (dict "k8s" .k8s "labels" $labels) | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "kvasir.rayTermination" (dict "root" .root "component" .component) }}
  {{- if not $head }}
  {{- include "kvasir.modelInit" (dict "root" .root "weights" (ne .pool "")) | nindent 2 }}
  {{- end }}
  containers:
    - name: ray
      {{- include "kvasir.container" (dict "root" .root "gpu" .gpu) | nindent 6 }}
      env:
        {{- include "kvasir.env" .root | nindent 8 }}
        {{- if not $head }}
        - name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
          value: {{ include "kvasir.rayDrainSeconds" (dict "root" .root "component" .component) | quote }}
        {{- end }}
        {{- range $key, $value := .k8s.extraEnv }}
        - name: {{ $key }}
          value: {{ $value | quote }}
        {{- end }}
      {{- with .ports }}
      ports:
        {{- . | nindent 8 }}
      {{- end }}
      startupProbe:
        {{- include "kvasir.rayletProbe" .root | nindent 8 }}
        failureThreshold: 60
      readinessProbe:
        {{- .readiness | nindent 8 }}
        failureThreshold: 3
      livenessProbe:
        {{- include "kvasir.rayletProbe" .root | nindent 8 }}
        failureThreshold: 12
      resources:
        {{- .resources | nindent 8 }}
      volumeMounts:
        {{- toYaml $mounts | nindent 8 }}
        - name: shm
          mountPath: /dev/shm
        {{- if eq .component "router" }}
        {{- include "kvasir.doorMounts" .root | nindent 8 }}
        {{- end }}
  volumes:
    {{- toYaml $volumes | nindent 4 }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .k8s.shmSize }}
    {{- if eq .component "router" }}
    {{- include "kvasir.doorVolumes" .root | nindent 4 }}
    {{- end }}
{{- end }}
