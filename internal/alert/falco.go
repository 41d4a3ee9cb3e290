package alert

import (
	"encoding/json"
	"strings"
	"time"

	"picket/internal/rules"
	"picket/schemas"
)

// FalcoAlert is an alert as Falco writes it with json_output, so that what
// reads Falco's alerts reads Picket's.
type FalcoAlert struct {
	UUID         string         `json:"uuid"` // the alert's id
	Output       string         `json:"output"`
	Priority     string         `json:"priority"`
	Rule         string         `json:"rule"`
	Source       string         `json:"source"`
	Tags         []string       `json:"tags"`
	Time         time.Time      `json:"time"`
	Hostname     string         `json:"hostname"`
	OutputFields map[string]any `json:"output_fields"`
}

// Falco returns the finding in Falco's form. Output begins with the time of day
// (UTC) and the priority; fields that are numbers or booleans in the rule
// language are such in JSON, and evt.time is in nanoseconds since 1970.
func Falco(f *schemas.Finding) FalcoAlert {
	priority := f.Unmapped.Priority
	if strings.EqualFold(priority, "info") {
		priority = "informational"
	}
	if priority != "" {
		priority = strings.ToUpper(priority[:1]) + strings.ToLower(priority[1:])
	}
	a := FalcoAlert{
		UUID: f.FindingInfo.UID, Priority: priority, Rule: f.Unmapped.Rule, Source: f.Unmapped.Source, Tags: f.Metadata.Labels,
		Time: f.Unmapped.Time.UTC(), Hostname: f.Unmapped.Node, OutputFields: make(map[string]any, len(f.Unmapped.Fields)+1),
		Output: f.Unmapped.Time.UTC().Format("15:04:05.000000000") + ": " + priority + " " + f.Message,
	}
	if a.Tags == nil {
		a.Tags = []string{}
	}
	for name, v := range f.Unmapped.Fields {
		a.OutputFields[name] = falcoValue(name, v)
	}
	a.OutputFields["evt.time"] = f.Unmapped.Time.UnixNano()
	return a
}

func falcoValue(name, v string) any {
	switch rules.FieldType(name) {
	case "number":
		if json.Valid([]byte(v)) {
			return json.Number(v)
		}
	case "boolean":
		return v == "true"
	}
	return v
}
