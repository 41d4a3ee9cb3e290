package schemas

import (
	"fmt"
	"slices"
	"strings"
)

// Severity orders alerts. Its values are OCSF's severity_id.
type Severity uint8

// The severities.
const (
	Informational Severity = iota + 1
	Low
	Medium
	High
	Critical
)

var severityNames = []string{"unknown", "informational", "low", "medium", "high", "critical"}

// String returns the name used in subjects, tables and on the command line.
func (s Severity) String() string {
	if int(s) < len(severityNames) {
		return severityNames[s]
	}
	return severityNames[0]
}

// ParseSeverity accepts a severity name in any case.
func ParseSeverity(name string) (Severity, error) {
	if i := slices.Index(severityNames, strings.ToLower(name)); i > 0 {
		return Severity(i), nil
	}
	return 0, fmt.Errorf("unknown severity %q (known: %s)", name, strings.Join(severityNames[1:], ", "))
}

// priorities maps Falco's eight priorities, in their order.
var priorities = []struct {
	name string
	sev  Severity
}{
	{"emergency", Critical}, {"alert", Critical}, {"critical", Critical},
	{"error", High}, {"warning", Medium}, {"notice", Low},
	{"informational", Informational}, {"debug", Informational},
}

// SeverityOfPriority maps a Falco priority ("info" is a synonym of
// informational) onto a severity.
func SeverityOfPriority(priority string) (Severity, error) {
	p := strings.ToLower(priority)
	if p == "info" {
		p = "informational"
	}
	names := make([]string, len(priorities))
	for i, x := range priorities {
		if x.name == p {
			return x.sev, nil
		}
		names[i] = x.name
	}
	return 0, fmt.Errorf("unknown priority %q (known: %s)", priority, strings.Join(names, ", "))
}

// Risk is the risk score, of 100, of an alert whose rule says no other.
func (s Severity) Risk() uint32 {
	return [...]uint32{0, 10, 25, 50, 75, 95}[min(s, Critical)]
}
