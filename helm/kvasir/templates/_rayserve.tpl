{{/*
serveConfigV2, as `kvasir deploy --write` prints it (a test holds the two against each other), with a
custom resource for each group of pods, so that each replica lands on a pod that was made for it.
*/}}
{{- define "kvasir.serveConfig" -}}
{{- $config := include "kvasir.config" . | fromJson }}
{{- dict "proxy_location" "Disabled" "applications" (list (include "kvasir.poolsApp" (dict "root" . "config" $config) | fromJson) (include "kvasir.routerApp" (dict "root" . "config" $config) | fromJson)) | toYaml }}
{{- end }}

{{- define "kvasir.routerApp" -}}
{{- $config := .config }}
{{- $slice := dict "cluster" $config.name "model" $config.model "redis" $config.redis }}
{{- $last := hasPrefix "/" $config.model | ternary (base $config.model) $config.model }}
{{- $_ := set $slice "served_name" ($config.served_name | default $last) }}
{{- $slice = merge $slice $config.router }}
{{- with $config.telemetry }}{{ $_ := set $slice "telemetry" . }}{{ end }}
{{- with $config.internal_tls }}{{ $_ := set $slice "worker_tls" . }}{{ end }}
{{- $args := dict "router" $slice "cpus" 1 "stamp" .root.Values.model.stamp "resources" (dict "kvasir-router" 1) }}
{{- $slo := dict "slo" ($config.slo | default dict | toJson) }}
{{- dict "name" (printf "%s-router" $config.name) "route_prefix" nil "import_path" "cluster.app:router" "args" $args "deployments" (list (dict "name" "router" "user_config" $slo)) | toJson }}
{{- end }}

{{- define "kvasir.poolsApp" -}}
{{- $config := .config }}
{{- $root := .root }}
{{- $args := list }}
{{- $deployments := list }}
{{- $scaled := false }}
{{- range $pool := include "kvasir.pools" $root | fromJsonArray }}
{{- if $pool.max }}
{{- $args = append $args (include "kvasir.poolArgs" (dict "root" $root "config" $config "pool" $pool) | fromJson) }}
{{- $deployment := dict "name" $pool.name "max_surge_percent" $root.Values.ray.maxSurgePercent }}
{{- if eq (int $pool.min) (int $pool.max) }}
{{- $_ := set $deployment "num_replicas" $pool.replicas }}
{{- else }}
{{- $scaled = true }}
{{- $bounds := dict "min_replicas" $pool.min "initial_replicas" $pool.replicas "max_replicas" $pool.max }}
{{- $atOnce := dict "upscale_delay_s" 0 "downscale_delay_s" 0 "downscale_to_zero_delay_s" 0 }}
{{- $_ := set $deployment "autoscaling_config" (merge $bounds $atOnce) }}
{{- end }}
{{- $deployments = append $deployments $deployment }}
{{- end }}
{{- end }}
{{- $app := dict "name" (printf "%s-pools" $config.name) "route_prefix" nil "import_path" "cluster.app:pools" "args" (dict "pools" $args) "deployments" $deployments }}
{{- if $scaled }}
{{- $kwargs := dict "redis" $config.redis "cluster" $config.name }}
{{- $_ := set $app "autoscaling_policy" (dict "policy_function" "cluster.plan_policy:PlanPolicy" "policy_kwargs" $kwargs) }}
{{- end }}
{{- toJson $app }}
{{- end }}

{{- define "kvasir.poolArgs" -}}
{{- $config := .config }}
{{- $pool := .pool }}
{{- $engine := deepCopy ($config.engine | default dict) }}
{{- $cpus := include "kvasir.rankCpus" . | float64 }}
{{- $_ := set $engine "threads" ($engine.threads | default (max 1 (floor $cpus | int))) }}
{{- range $key := list "tensor_parallel" "expert_parallel" }}
{{- with index $pool.config $key }}{{ $_ := set $engine $key . }}{{ end }}
{{- end }}
{{- $role := eq $pool.config.role "flex" | ternary ($pool.config.starts_as | default "decode") $pool.config.role }}
{{- $worker := dict "replica" $pool.name "pool" $pool.name "role" $role "model" $config.model "cluster" $config.name "hardware" ($pool.config.hardware | default $config.hardware | default "cpu") "redis" $config.redis "engine" $engine }}
{{- range $key := list "transport" "ticket_ttl_s" "grace_s" }}
{{- if hasKey $config $key }}{{ $_ := set $worker $key (index $config $key) }}{{ end }}
{{- end }}
{{- with $config.internal_tls }}{{ $_ := set $worker "tls" . }}{{ end }}
{{- with ($config.telemetry | default dict).logs }}{{ $_ := set $worker "logs" . }}{{ end }}
{{- $gpus := divf $pool.gpus $pool.ranks }}
{{- if not (kindIs "invalid" $pool.config.num_gpus) }}{{ $gpus = $pool.config.num_gpus }}{{ end }}
{{- dict "worker" $worker "cpus" $cpus "gpus" $gpus "host" nil "stamp" .root.Values.model.stamp "resources" (dict (printf "kvasir-%s" $pool.name) 1) | toJson }}
{{- end }}

{{/* CPUs that Ray counts for each rank. (dict "config" config "pool" pool) */}}
{{- define "kvasir.rankCpus" -}}
{{- $threads := (.config.engine | default dict).threads | default 1 }}
{{- if kindIs "invalid" .pool.config.num_cpus }}{{ $threads }}{{ else }}{{ .pool.config.num_cpus }}{{ end }}
{{- end }}
