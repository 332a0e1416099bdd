{{/* What a schema cannot say. Each refusal names the value and what to do. */}}
{{- define "kvasir.check" -}}
{{- $pools := include "kvasir.pools" . | fromJsonArray }}
{{- $seen := dict }}
{{- range $pool := $pools }}
{{- if hasKey $seen $pool.name }}{{ fail (printf "cluster.pools: two pools are called %s" $pool.name) }}{{ end }}
{{- $_ := set $seen $pool.name true }}
{{- if has $pool.name (list "router" "planner" "redis" "worker" "test") }}
{{- fail (printf "cluster.pools: %s is the name of another part of the release; call the pool something else" $pool.name) }}
{{- end }}
{{- if gt (len (printf "%s-%s" (include "kvasir.name" $) $pool.name)) 52 }}
{{- fail (printf "release %s and pool %s: the two names together are longer than 51 characters" $.Release.Name $pool.name) }}
{{- end }}
{{- if not (and (le (int $pool.min) (int $pool.replicas)) (le (int $pool.replicas) (int $pool.max))) }}
{{- fail (printf "cluster.pools: %s: min %v, replicas %v and max %v are not in order" $pool.name $pool.min $pool.replicas $pool.max) }}
{{- end }}
{{- if gt (int $pool.hosts) 1 }}
{{- if eq $.Values.mode "static" }}
{{- fail (printf "pool %s: a replica has %v ranks with %v GPUs, and a node has %v (workers.gpusPerNode): replicas over several nodes need `mode: ray`; in `static` mode make tensor_parallel or expert_parallel smaller" $pool.name $pool.ranks $pool.gpus $pool.k8s.gpusPerNode) }}
{{- end }}
{{- if mod (int $pool.gpus) (int $pool.hosts) }}
{{- fail (printf "pool %s: %v GPUs do not spread evenly over %v nodes of %v (workers.gpusPerNode)" $pool.name $pool.gpus $pool.hosts $pool.k8s.gpusPerNode) }}
{{- end }}
{{- end }}
{{- if and (eq (toString $pool.k8s.rollout.maxSurge) "0") (eq (toString $pool.k8s.rollout.maxUnavailable) "0") }}
{{- fail (printf "pool %s: rollout.maxSurge and rollout.maxUnavailable are both 0: nothing could ever be replaced" $pool.name) }}
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.pools }}
{{- if not (hasKey $seen $name) }}
{{- fail (printf "pools.%s: there is no such pool in cluster.pools, which has %s" $name (keys $seen | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- if not (regexMatch "^[a-z]" .Release.Name) }}
{{- fail (printf "release %s: names of Services, and of what KubeRay makes, begin with a letter" .Release.Name) }}
{{- end }}
{{- include "kvasir.checkModel" . }}
{{- include "kvasir.checkRedis" . }}
{{- if and .Values.tls.clientCa (not .Values.tls.secret) }}{{ fail "tls.clientCa: name the Secret in tls.secret" }}{{ end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}{{ fail "ingress.host: name the host that the Ingress answers to" }}{{ end }}
{{- if and (eq .Values.mode "ray") (gt (int .Values.router.replicas) 1) }}
{{- fail "router.replicas: in `mode: ray` the router is a Ray Serve deployment of one replica" }}
{{- end }}
{{- if and (eq .Values.mode "ray") (lt (int .Values.ray.drainSeconds) (int (include "kvasir.graceSeconds" .))) }}
{{- fail (printf "ray.drainSeconds is %v, less than a replica may take to drain: cluster.grace_s is %v" .Values.ray.drainSeconds (include "kvasir.graceSeconds" .)) }}
{{- end }}
{{- if and (eq .Values.mode "ray") (gt (len .Release.Name) 41) }}
{{- fail (printf "release %s: in `mode: ray` a name has at most 41 characters, for KubeRay makes longer ones of it" .Release.Name) }}
{{- end }}
{{- if and (eq .Values.mode "ray") .Values.ray.checkCrd (not (.Capabilities.APIVersions.Has "ray.io/v1/RayService")) }}
{{- fail "mode: ray needs the KubeRay operator: there is no ray.io/v1 RayService in this cluster (for `helm template`: --api-versions ray.io/v1/RayService, or ray.checkCrd=false)" }}
{{- end }}
{{- end }}

{{- define "kvasir.checkModel" -}}
{{- $model := .Values.model }}
{{- if and (eq $model.source "image") (regexMatch "^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+$" .Values.cluster.model) }}
{{- fail (printf "cluster.model is %s, a model on the hub, and pods fetch nothing while they run: say model.source: download, model.download.repository: %s and cluster.model: /models/NAME" .Values.cluster.model .Values.cluster.model) }}
{{- end }}
{{- if ne $model.source "image" }}
{{- if not (hasPrefix (printf "%s" $model.path) .Values.cluster.model) }}
{{- fail (printf "cluster.model is %s, but the model volume is mounted at %s (model.path): name a directory in it" .Values.cluster.model $model.path) }}
{{- end }}
{{- end }}
{{- if and (eq $model.source "pvc") (not $model.pvc.claimName) }}{{ fail "model.pvc.claimName: name the claim that holds the checkpoint" }}{{ end }}
{{- if and (eq $model.source "imageVolume") (not $model.imageVolume.reference) }}{{ fail "model.imageVolume.reference: name the image that holds the checkpoint" }}{{ end }}
{{- if and (eq $model.source "download") (not $model.download.repository) }}{{ fail "model.download.repository: name the model on the hub, as owner/name" }}{{ end }}
{{- if eq $model.source "hostPath" }}
{{- if not $model.hostPath.path }}{{ fail "model.hostPath.path: name the directory on the nodes" }}{{ end }}
{{- if not $model.hostPath.allowed }}
{{- fail "model.source hostPath mounts a directory of the node, which the baseline and restricted Pod Security Standards forbid: use pvc, imageVolume or download, or say model.hostPath.allowed: true" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kvasir.checkRedis" -}}
{{- $endpoint := .Values.redis.external.endpoint }}
{{- $given := or $endpoint.url $endpoint.sentinel $endpoint.cluster }}
{{- if and .Values.redis.bundled.enabled $given }}
{{- fail "redis: there is an external endpoint and the bundled server; set redis.bundled.enabled to false, or take redis.external.endpoint away" }}
{{- end }}
{{- if not (or .Values.redis.bundled.enabled $given) }}
{{- fail "redis.external.endpoint: name a server (url, sentinel or cluster), or set redis.bundled.enabled" }}
{{- end }}
{{- if and .Values.redis.external.secret.certKey (not .Values.redis.external.secret.keyKey) }}{{ fail "redis.external.secret: certKey needs keyKey" }}{{ end }}
{{- end }}
