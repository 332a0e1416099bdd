{{/* Where the checkpoint comes from: in the image, a volume, or a download before the start. */}}

{{- define "kvasir.modelMount" -}}
{{- $model := .Values.model }}
{{- if ne $model.source "image" }}
- name: model
  mountPath: {{ $model.path }}
  readOnly: true
  {{- if and (eq $model.source "pvc") $model.pvc.subPath }}
  subPath: {{ $model.pvc.subPath }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "kvasir.modelVolume" -}}
{{- $model := .Values.model }}
{{- if eq $model.source "pvc" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $model.pvc.claimName }}
    readOnly: true
{{- else if eq $model.source "imageVolume" }}
- name: model
  image:
    reference: {{ $model.imageVolume.reference | quote }}
    pullPolicy: {{ $model.imageVolume.pullPolicy }}
{{- else if eq $model.source "hostPath" }}
- name: model
  hostPath:
    path: {{ $model.hostPath.path }}
    type: Directory
{{- else if eq $model.source "download" }}
- name: model
  emptyDir:
    sizeLimit: {{ $model.download.sizeLimit }}
{{- end }}
{{- end }}

{{/* (dict "root" $ "weights" true): fetches once, before the process starts. Routers read no weights. */}}
{{- define "kvasir.modelInit" -}}
{{- $download := .root.Values.model.download }}
{{- if eq .root.Values.model.source "download" }}
initContainers:
  - name: download
    {{- include "kvasir.container" (dict "root" .root "gpu" false) | nindent 4 }}
    command: [python, -c]
    args:
      - |
        import sys
        from huggingface_hub import snapshot_download
        repository, revision, folder, *patterns = sys.argv[1:]
        snapshot_download(repository, revision=revision or None, local_dir=folder,
                          allow_patterns=patterns, ignore_patterns=["original/*", "metal/*", "consolidated*"])
      - {{ $download.repository | quote }}
      - {{ $download.revision | quote }}
      - {{ .root.Values.cluster.model | quote }}
      - "*.json"
      - "*.jinja"
      {{- if .weights }}
      - "*.safetensors"
      {{- end }}
    env:
      - name: HOME
        value: /tmp
      # What it caches beside the files themselves would fill /tmp.
      - name: HF_XET_CHUNK_CACHE_SIZE_BYTES
        value: "0"
      {{- range $key, $value := $download.extraEnv }}
      - name: {{ $key }}
        value: {{ $value | quote }}
      {{- end }}
      {{- with $download.token }}
      {{- if .secret }}
      - name: HF_TOKEN
        valueFrom:
          secretKeyRef:
            name: {{ .secret }}
            key: {{ .key }}
      {{- end }}
      {{- end }}
    resources:
      {{- toYaml $download.resources | nindent 6 }}
    volumeMounts:
      - name: model
        mountPath: {{ .root.Values.model.path }}
      - name: tmp
        mountPath: /tmp
{{- end }}
{{- end }}
