{{/* Pods of a Ray cluster: the head, the router's, and a group for each pool. */}}

{{- define "kvasir.raySelector" -}}
{{ include "kvasir.selector" . }}
kvasir.dev/ray: "true"
{{- end }}

{{/* Ray's agent on each node answers for its raylet; the Serve proxy, which KubeRay would ask, is off. */}}
{{- define "kvasir.rayletProbe" -}}
httpGet:
  port: 52365
  path: /api/local_raylet_healthz
periodSeconds: 5
timeoutSeconds: 5
{{- end }}

{{/* Ray moves what runs here to other pods, which may have to load the model first. */}}
{{- define "kvasir.rayPreStop" -}}
preStop:
  exec:
    command:
      - sh
      - -c
      - >-
        ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod ends'
        --deadline-remaining-seconds {{ .Values.ray.drainSeconds }} && sleep {{ .Values.ray.drainSeconds }}
{{- end }}

{{- define "kvasir.rayTermination" -}}
{{ add .Values.ray.drainSeconds (include "kvasir.graceSeconds" .) 15 }}
{{- end }}

{{/*
The pod template of a group. (dict "root" $ "component" c "pool" name or "" "gpu" bool "k8s" values
"resources" yaml "ports" yaml "readiness" yaml)
*/}}
{{- define "kvasir.rayPod" -}}
{{- $labels := printf "%s\nkvasir.dev/ray: \"true\"" (include "kvasir.componentSelector" .) }}
{{- if .pool }}{{ $labels = printf "%s\nkvasir.dev/pool: %s" $labels .pool }}{{ end }}
{{- $head := eq .component "head" }}
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
  terminationGracePeriodSeconds: {{ include "kvasir.rayTermination" .root }}
  {{- if not $head }}
  {{- include "kvasir.modelInit" (dict "root" .root "weights" (ne .pool "")) | nindent 2 }}
  {{- end }}
  containers:
    - name: ray
      {{- include "kvasir.container" (dict "root" .root "gpu" .gpu) | nindent 6 }}
      env:
        {{- include "kvasir.env" .root | nindent 8 }}
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
      {{- if not $head }}
      lifecycle:
        {{- include "kvasir.rayPreStop" .root | nindent 8 }}
      {{- end }}
      resources:
        {{- .resources | nindent 8 }}
      volumeMounts:
        {{- include "kvasir.mounts" .root | nindent 8 }}
        - name: shm
          mountPath: /dev/shm
        {{- if not .pool }}
        {{- include "kvasir.doorMounts" .root | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "kvasir.volumes" .root | nindent 4 }}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ .k8s.shmSize }}
    {{- if not .pool }}
    {{- include "kvasir.doorVolumes" .root | nindent 4 }}
    {{- end }}
{{- end }}
