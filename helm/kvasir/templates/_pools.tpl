{{/*
The pools of `cluster`, each with what Kubernetes needs to know of it: JSON list of
{name, config, k8s, ranks, gpus (of a replica), hosts (pods of a replica), bounds}.
`k8s` is `workers` with what `pools.<name>` says differently.
*/}}
{{- define "kvasir.pools" -}}
{{- $cluster := .Values.cluster }}
{{- $engine := $cluster.engine | default dict }}
{{- $pools := list }}
{{- range $pool := include "kvasir.poolList" . | fromJsonArray }}
{{- $tensor := $pool.tensor_parallel | default $engine.tensor_parallel | default 1 | int }}
{{- $experts := $pool.expert_parallel | default $engine.expert_parallel | default 1 | int }}
{{- $ranks := max $tensor $experts }}
{{- $hardware := $pool.hardware | default $cluster.hardware | default "cpu" }}
{{- $each := eq $hardware "cpu" | ternary 0 1 }}
{{- if not (kindIs "invalid" $pool.num_gpus) }}{{ $each = $pool.num_gpus }}{{ end }}
{{- $gpus := mulf $ranks $each | ceil | int }}
{{- $k8s := mergeOverwrite (deepCopy $.Values.workers) (deepCopy (index $.Values.pools $pool.name | default dict)) }}
{{- $hosts := 1 }}
{{- if gt $gpus ($k8s.gpusPerNode | int) }}{{ $hosts = divf $gpus $k8s.gpusPerNode | ceil | int }}{{ end }}
{{- $replicas := 1 }}
{{- if not (kindIs "invalid" $pool.replicas) }}{{ $replicas = $pool.replicas | int }}{{ end }}
{{- $least := $replicas }}
{{- if not (kindIs "invalid" $pool.min) }}{{ $least = $pool.min | int }}{{ end }}
{{- $most := $replicas }}
{{- if not (kindIs "invalid" $pool.max) }}{{ $most = $pool.max | int }}{{ end }}
{{- $pools = append $pools (dict "name" $pool.name "config" $pool "k8s" $k8s "ranks" $ranks "gpus" $gpus "hosts" $hosts "replicas" $replicas "min" $least "max" $most) }}
{{- end }}
{{- toJson $pools }}
{{- end }}

{{/* As the config's own default where the file names none. */}}
{{- define "kvasir.poolList" -}}
{{- $default := list (dict "name" "prefill" "role" "prefill") (dict "name" "decode" "role" "decode") }}
{{- .Values.cluster.pools | default $default | toJson }}
{{- end }}

{{/* (dict "root" $ "pool" $pool): resources of a worker's container; GPUs are limits and requests. */}}
{{- define "kvasir.workerResources" -}}
{{- $k8s := .pool.k8s }}
{{- $extra := dict }}
{{- if .pool.gpus }}{{ $_ := set $extra $k8s.gpuResource (divf .pool.gpus .pool.hosts | int) }}{{ end }}
{{- range $name, $count := $k8s.rdma }}{{ $_ := set $extra $name $count }}{{ end }}
{{- $requests := merge (deepCopy $extra) $k8s.resources.requests }}
{{- $limits := merge (deepCopy $extra) $k8s.resources.limits }}
{{- dict "requests" $requests "limits" $limits | toYaml }}
{{- end }}

{{/*
Seconds that a new replica stands ready before the next is replaced. All pools take about as long
for the whole of a rolling update, so at each moment the same share of each is new: the pool with
the most replicas pauses for `pauseSeconds` only, the others longer. (dict "root" $ "pool" $pool)
*/}}
{{- define "kvasir.minReadySeconds" -}}
{{- $rollout := .root.Values.workers.rollout }}
{{- $largest := 1 }}
{{- range include "kvasir.pools" .root | fromJsonArray }}{{ $largest = max $largest (int .replicas) }}{{ end }}
{{- $step := add $rollout.loadSeconds $rollout.pauseSeconds }}
{{- $own := div (mul $largest $step) (max 1 (int .pool.replicas)) }}
{{- sub $own $rollout.loadSeconds }}
{{- end }}

{{/* "advise" or "apply"; nothing where no planner runs. YAML reads a bare `off` as false. */}}
{{- define "kvasir.plannerMode" -}}
{{- $mode := (.Values.cluster.planner | default dict).mode }}
{{- if and $mode (ne (toString $mode) "off") }}{{ $mode }}{{ end }}
{{- end }}
