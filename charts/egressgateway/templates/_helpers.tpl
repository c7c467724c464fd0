{{- define "egressgateway.labels" -}}
app.kubernetes.io/name: egressgateway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- /* What selects the pods of a component: (list . "agent") */ -}}
{{- define "egressgateway.selector" -}}
app.kubernetes.io/name: egressgateway
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "egressgateway.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- if ne .Values.image.features "full" }}{{ $tag = printf "%s-%s" $tag .Values.image.features }}{{ end -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end }}

{{- /* Both daemons are ready within a second of their start, and a rollout waits for each. A busy node takes its time to answer. */ -}}
{{- define "egressgateway.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: metrics}
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
{{- end }}

{{- /* Arguments and environment that both daemons have. */ -}}
{{- define "egressgateway.environment" -}}
- {name: EGRESSGATEWAY_CONFIG, value: /etc/egressgateway/config.yaml}
- {name: EGRESSGATEWAY_LOG_LEVEL, value: {{ .Values.log.level | quote }}}
- {name: EGRESSGATEWAY_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
{{- /* A first list is megabytes of text, once. The C library keeps as much for good otherwise, in each of several heaps. */}}
- {name: MALLOC_ARENA_MAX, value: "1"}
- {name: MALLOC_MMAP_THRESHOLD_, value: "131072"}
- {name: MALLOC_TRIM_THRESHOLD_, value: "131072"}
{{- end }}

{{- /* Labels, finalizers and owners are nobody's business here: they change without a webhook, also when no controller lives. */ -}}
{{- define "egressgateway.webhook.conditions" -}}
- name: spec
  expression: request.operation != "UPDATE" || !has(oldObject.spec) || !has(object.spec) || object.spec != oldObject.spec
{{- end }}

{{- /* Changes with what a daemon takes over at its start only; the rest it takes from the mounted file while it runs. */ -}}
{{- define "egressgateway.checksum" -}}
{{- $fixed := omit .Values.config "forwardMethod" "defaultEgressGateway" "clusterCIDRs" "failover" "startGate" "holdAtBoot" "resetConnections" -}}
{{- list $fixed (dig "clusterCIDRs" "auto" true .Values.config) | toJson | sha256sum -}}
{{- end }}
