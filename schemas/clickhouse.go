package schemas

import (
	"fmt"
	"strings"
)

// Database is the ClickHouse database of all tables.
const Database = "picket"

// AlertsTable is the table of findings; one row per alert and revision.
const AlertsTable = "alerts"

// AlertActivityTable holds what people say of alerts.
const AlertActivityTable = "alert_activity"

// DeduplicationWindow is the number of recent inserts per table whose
// deduplication tokens ClickHouse remembers.
const DeduplicationWindow = 10000

// RetentionDays is how long event tables keep a day's rows.
const RetentionDays = 30

// Table returns the name of the class's table within Database.
func (c Class) Table() string { return c.String() }

// ClickHouseType returns the type of the field's column.
func (f *Field) ClickHouseType() string {
	t := map[Type]string{
		Text:   "String",
		Name:   "LowCardinality(String)",
		Bool:   "Bool",
		Uint32: "UInt32",
		Uint64: "UInt64",
		Int64:  "Int64",
		Time:   "DateTime64(9, 'UTC')",
		List:   "Array(String)",
		Names:  "Array(String)",
		Map:    "Map(LowCardinality(String), String)",
		IP:     "IPv6",
		ID:     "UUID",
		Date:   "Date",
	}[f.Type]
	if f.Type == Name && f.Wide {
		t = "String"
	}
	if f.Nullable {
		t = "Nullable(" + t + ")"
	}
	return t
}

// codec returns the column's compression: Delta where neighbours are close,
// ZSTD for text, the server's default (LZ4) for the rest.
func (f *Field) codec() string {
	switch {
	case f.Type == Time, f.Name == "time_boot", f.Name == "sequence":
		return "Delta, ZSTD(1)"
	case f.Type == Text, f.Type == Name && f.Wide, f.Type == List, f.Type == Names, f.Type == Map:
		return "ZSTD(1)"
	}
	return ""
}

// orderBy is the sorting key of each table: what people filter by first, from
// few distinct values to many, then time.
var orderBy = map[Class]string{
	Process: "cluster, k8s_namespace_name, action, toStartOfHour(time), process_name, time",
	File:    "cluster, k8s_namespace_name, action, toStartOfHour(time), process_name, time",
	Network: "cluster, k8s_namespace_name, action, toStartOfHour(time), process_name, time",
	Kernel:  "cluster, k8s_namespace_name, action, toStartOfHour(time), process_name, time",
	DNS:     "cluster, k8s_namespace_name, action, toStartOfHour(time), dns_question_name, time",
	Audit:   "cluster, audit_namespace, audit_verb, toStartOfHour(time), audit_resource, time",
	Health:  "cluster, health_service, action, time",

	Correction: "cluster, k8s_pod_uid, container_id, time",
}

// aliases are columns computed on reading, for people who query.
var aliases = map[Class][]string{
	Process: {commandLine},
	File:    {commandLine},
	Network: {commandLine},
	Kernel:  {commandLine},
	DNS:     {commandLine},
}

const commandLine = "process_command_line String ALIAS trim(concat(process_command, ' ', process_args)) COMMENT 'process_command and process_args, joined by one space.'"

// CreateTable returns the statement that creates the class's table as it is
// in this version.
func CreateTable(c Class) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CREATE TABLE IF NOT EXISTS %s.%s (\n", Database, c.Table())
	for _, id := range TableColumns(c) {
		fmt.Fprintf(&b, "    %s,\n", ColumnDefinition(id))
	}
	for _, a := range aliases[c] {
		fmt.Fprintf(&b, "    %s,\n", a)
	}
	b.WriteString("    INDEX batch_id_bloom batch_id TYPE bloom_filter(0.001) GRANULARITY 1,\n")
	if c != Health {
		b.WriteString("    INDEX event_id_bloom event_id TYPE bloom_filter(0.01) GRANULARITY 4,\n")
	}
	if node.Has(c) { // a correction is looked up by its sorting key
		b.WriteString("    INDEX container_id_bloom container_id TYPE bloom_filter(0.01) GRANULARITY 4,\n")
	}
	s := strings.TrimSuffix(b.String(), ",\n") + "\n"
	return s + fmt.Sprintf(`) ENGINE = MergeTree
PARTITION BY batch_date
ORDER BY (%s)
TTL batch_date + INTERVAL %d DAY DELETE
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = %d`, orderBy[c], RetentionDays, DeduplicationWindow)
}

// View is the name of the view of a class's table in which what was not known
// when an event was joined is filled in.
func (c Class) View() string { return c.Table() + "_corrected" }

// CreateViews returns the statements that make the views. They follow the
// tables' columns: make them again when those change.
func CreateViews() []string {
	var out []string
	for _, c := range Classes() {
		if person.Has(c) {
			out = append(out, createView(c))
		}
	}
	return out
}

// createView fills in what the last correction says of an event's pod and
// container: of an unresolved event everything, of another what it lacks.
func createView(c Class) string {
	var replaced, latest []string
	for _, id := range TableColumns(c) {
		f := id.Field()
		if !f.Enriched || !f.Classes.Has(Correction) {
			continue
		}
		value := fmt.Sprintf("if(e.k8s_join = 'unresolved' AND notEmpty(c.%[1]s) OR empty(e.%[1]s), c.%[1]s, e.%[1]s)", f.Name)
		if f.Type == Bool {
			value = fmt.Sprintf("e.%[1]s OR c.%[1]s", f.Name)
		}
		replaced = append(replaced, fmt.Sprintf("    %s AS %s", value, f.Name))
		latest = append(latest, fmt.Sprintf("argMax(k.%[1]s, k.time) AS %[1]s", f.Name))
	}
	replaced = append(replaced, "    if(e.k8s_join = 'unresolved' AND c.k8s_pod_name != '', 'corrected', e.k8s_join) AS k8s_join")
	columns := "e.* REPLACE (\n" + strings.Join(replaced, ",\n") + ")"
	for _, a := range aliases[c] {
		name, _, _ := strings.Cut(a, " ")
		columns += ", e." + name + " AS " + name
	}
	container := "container_id" // an audit event's is none
	if !node.Has(c) {
		container = "''"
	} else {
		container = "e." + container
	}
	return fmt.Sprintf(`CREATE OR REPLACE VIEW %[1]s.%[2]s AS
SELECT %[3]s
FROM %[1]s.%[4]s AS e
LEFT ANY JOIN (
    SELECT k.cluster AS on_cluster, k.k8s_pod_uid AS on_pod, k.container_id AS on_container, %[5]s
    FROM %[1]s.%[6]s AS k
    GROUP BY on_cluster, on_pod, on_container
) AS c ON e.cluster = c.on_cluster AND e.k8s_pod_uid = c.on_pod AND %[7]s = c.on_container`,
		Database, c.View(), columns, c.Table(), strings.Join(latest, ", "), Correction.Table(), container)
}

// ColumnDefinition returns the field's part of a CREATE TABLE or ADD COLUMN.
func ColumnDefinition(id FieldID) string {
	f := id.Field()
	return definition(f.Name, f.ClickHouseType(), f.codec(), f.Doc)
}

func definition(name, typ, codec, doc string) string {
	if codec != "" {
		codec = " CODEC(" + codec + ")"
	}
	return fmt.Sprintf("%s %s COMMENT '%s'%s", name, typ, strings.ReplaceAll(doc, "'", "''"), codec)
}

// Column is a column of a table that the field registry does not describe.
type Column struct {
	Name  string
	Type  string // ClickHouse type, as system.columns shows it
	Codec string // empty: the server's default
	Doc   string
}

// Definition returns the column's part of a CREATE TABLE or ADD COLUMN.
func (c Column) Definition() string { return definition(c.Name, c.Type, c.Codec, c.Doc) }

// AlertColumns returns the columns of AlertsTable in order.
func AlertColumns() []Column {
	const near, text = "Delta, ZSTD(1)", "ZSTD(1)"
	return []Column{
		{"alert_id", "UUID", "", "Hash of the rule and its evidence: the same events give the same alert."},
		{"revision", "UInt32", "", "Rises when the alert is amended; the highest counts."},
		{"time", "DateTime64(9, 'UTC')", near, "Time of the first event."},
		{"time_created", "DateTime64(9, 'UTC')", near, "When the detector raised it."},
		{"cluster", "LowCardinality(String)", "", "Cluster of the event."},
		{"node", "LowCardinality(String)", "", "Node or audit source of the event."},
		{"rule", "LowCardinality(String)", "", "Name of the rule."},
		{"rule_id", "LowCardinality(String)", "", "The rule's id, which stays when its name changes; empty where it has none."},
		{"severity", "LowCardinality(String)", "", "informational, low, medium, high or critical."},
		{"severity_id", "UInt8", "", "OCSF severity_id: 1 informational to 5 critical."},
		{"risk_score", "UInt8", "", "From 0 to 100: the rule's, or that of its severity."},
		{"message", "String", text, "The rule's output with its fields filled in."},
		{"class", "LowCardinality(String)", "", "Event class of the evidence."},
		{"k8s_namespace_name", "LowCardinality(String)", "", "Namespace of the pod, or of the audited object."},
		{"k8s_pod_name", "String", "", "Pod of the acting process."},
		{"k8s_workload_kind", "LowCardinality(String)", "", "Kind of the pod's workload."},
		{"k8s_workload_name", "LowCardinality(String)", "", "Name of the pod's workload."},
		{"container_id", "String", "", "Container of the acting process."},
		{"container_name", "LowCardinality(String)", "", "Its name in the pod, or that its runtime gives it."},
		{"container_image_name", "LowCardinality(String)", "", "Image repository, registry included, without tag and digest."},
		{"container_image_tag", "LowCardinality(String)", "", "Image tag."},
		{"container_image_digest", "LowCardinality(String)", "", "Image digest, or the image's id where the digest is not known."},
		{"process_pid", "UInt32", "", "Acting process, in the host's pid namespace; 0 where none acts."},
		{"process_name", "LowCardinality(String)", "", "Its command name."},
		{"process_executable_path", "String", text, "Its executable."},
		{"process_command_line", "String", text, "Its arguments, joined by one space, redacted by policy."},
		{"process_ancestor_names", "Array(String)", text, "Command names of its ancestors, parent first."},
		{"user_name", "LowCardinality(String)", "", "Acting user: of the process, or of the API call."},
		{"tags", "Array(LowCardinality(String))", "", "Tags of the rule."},
		{"technique_ids", "Array(LowCardinality(String))", "", "ATT&CK technique ids."},
		{"tactic_ids", "Array(LowCardinality(String))", "", "ATT&CK tactic ids of the techniques."},
		{"alert_types", "Array(LowCardinality(String))", "", "Ids that other catalogues have for it."},
		{"why", "Map(LowCardinality(String), String)", text, "Values of the fields that made the rule's condition hold, by name."},
		{"event_ids", "Array(UUID)", "", "The evidence: event_id in the event tables."},
		{"finding", "String", "ZSTD(3)", "The OCSF Detection Finding, JSON."},
		{"batch_id", "String", text, "Id of the message on PICKET_ALERTS that carried it. Makes inserts exact."},
	}
}

// CreateAlerts returns the statements of the two alert tables.
func CreateAlerts() []string {
	var b strings.Builder
	for _, c := range AlertColumns() {
		fmt.Fprintf(&b, "    %s,\n", c.Definition())
	}
	return []string{fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s.%s (
%s    INDEX batch_id_bloom batch_id TYPE bloom_filter(0.001) GRANULARITY 1
) ENGINE = ReplacingMergeTree(revision)
PARTITION BY toYYYYMM(time)
ORDER BY (cluster, rule, alert_id)
SETTINGS non_replicated_deduplication_window = %d`, Database, AlertsTable, b.String(), DeduplicationWindow),
		fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s.%s (
    alert_id UUID,
    time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    author LowCardinality(String),
    state LowCardinality(String) COMMENT 'acknowledged, closed, reopened; empty for a comment alone.',
    comment String
) ENGINE = MergeTree
ORDER BY (alert_id, time)`, Database, AlertActivityTable)}
}
