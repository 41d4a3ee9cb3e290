package record

// Kind and APIVersion are what a record is.
const (
	Kind       = "Event"
	APIVersion = "audit.k8s.io/v1"
)

// ListedHeader is what a record in a list lacks in comparison with the same
// record in a log file.
const ListedHeader = `"kind":"Event","apiVersion":"audit.k8s.io/v1",`

// Reasons for which a record or a list is refused (fault.Reason of the error).
// They are metric labels, and the only ones.
const (
	ReasonSyntax     = "syntax"      // not JSON
	ReasonType       = "type"        // a field of another type than the API has
	ReasonTwice      = "twice"       // a field stands twice: which one counts?
	ReasonKind       = "kind"        // not an Event, not an EventList
	ReasonAPIVersion = "api_version" // not audit.k8s.io/v1
	ReasonAuditID    = "audit_id"    // no auditID
	ReasonStage      = "stage"       // no stage
	ReasonTime       = "time"        // no time that can be read
	ReasonEncoding   = "encoding"    // cannot be decompressed
	ReasonCluster    = "cluster"     // of a cluster whose name cannot be taken
	ReasonTooLarge   = "oversized"   // larger than is taken at all
)
