package schemas

import (
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/zeebo/xxh3"
)

// OCSFVersion is the released version of the Open Cybersecurity Schema
// Framework that findings follow (https://schema.ocsf.io/1.5.0).
const OCSFVersion = "1.5.0"

// AttackVersion is the ATT&CK version that technique ids refer to.
const AttackVersion = "19"

// Finding is an alert: an OCSF Detection Finding (class 2004). Field names and
// ids are OCSF's; what OCSF has no place for is under Unmapped.
type Finding struct {
	ActivityID  int          `json:"activity_id"` // 1 Create, 2 Update
	CategoryUID int          `json:"category_uid"`
	ClassUID    int          `json:"class_uid"`
	ClassName   string       `json:"class_name"`
	TypeUID     int          `json:"type_uid"`
	SeverityID  Severity     `json:"severity_id"`
	Severity    string       `json:"severity"`
	StatusID    int          `json:"status_id"` // 1 New
	Time        int64        `json:"time"`      // ms since the epoch, of the first event
	Message     string       `json:"message"`
	IsAlert     bool         `json:"is_alert"`
	RiskScore   uint32       `json:"risk_score"` // of 100
	RiskLevelID int          `json:"risk_level_id"`
	RiskLevel   string       `json:"risk_level"`
	Remediation *Remediation `json:"remediation,omitempty"`
	Metadata    Metadata     `json:"metadata"`
	FindingInfo FindingInfo  `json:"finding_info"`
	Device      *Device      `json:"device,omitempty"`
	Actor       *Actor       `json:"actor,omitempty"`
	API         *API         `json:"api,omitempty"`
	Evidences   []Evidence   `json:"evidences"`
	Resources   []Resource   `json:"resources,omitempty"`
	Unmapped    FindingExtra `json:"unmapped"`
}

// Metadata is OCSF metadata.
type Metadata struct {
	Version    string   `json:"version"`
	Product    Product  `json:"product"`
	UID        string   `json:"uid"`
	Sequence   uint32   `json:"sequence"`    // revision
	LoggedTime int64    `json:"logged_time"` // ms, when the detector raised it
	Profiles   []string `json:"profiles"`
	Labels     []string `json:"labels,omitempty"` // tags of the rule
}

// Product names Picket.
type Product struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

// FindingInfo says what was found.
type FindingInfo struct {
	UID           string   `json:"uid"` // alert id
	Title         string   `json:"title"`
	Desc          string   `json:"desc,omitempty"`
	FirstSeenTime int64    `json:"first_seen_time"` // ms
	CreatedTime   int64    `json:"created_time"`    // ms
	Types         []string `json:"types,omitempty"` // ids that other catalogues have for it
	Analytic      Analytic `json:"analytic"`
	Attacks       []Attack `json:"attacks,omitempty"`
}

// Remediation says what to do.
type Remediation struct {
	Desc string `json:"desc"`
}

// Analytic is the rule.
type Analytic struct {
	UID    string `json:"uid,omitempty"` // the rule's id
	Name   string `json:"name"`
	TypeID int    `json:"type_id"` // 1 Rule
	Type   string `json:"type"`
}

// Attack is an ATT&CK technique with one of its tactics: one that belongs to
// several stands once for each, as OCSF wants it.
type Attack struct {
	Version      string     `json:"version"`
	Tactic       *Technique `json:"tactic,omitempty"`
	Technique    Technique  `json:"technique"`
	SubTechnique *Technique `json:"sub_technique,omitempty"`
}

// ID returns the id that the rule gave: that of the sub-technique, if it is one.
func (a Attack) ID() string {
	if a.SubTechnique != nil {
		return a.SubTechnique.UID
	}
	return a.Technique.UID
}

// Technique is an ATT&CK tactic, technique or sub-technique by id.
type Technique struct {
	UID  string `json:"uid"`
	Name string `json:"name,omitempty"`
}

// Device is the node.
type Device struct {
	Hostname  string     `json:"hostname"`
	TypeID    int        `json:"type_id"` // 1 Server
	Container *Container `json:"container,omitempty"`
}

// Container is OCSF's container profile object.
type Container struct {
	UID     string `json:"uid"`
	Name    string `json:"name,omitempty"`
	PodUUID string `json:"pod_uuid,omitempty"`
	Image   *Image `json:"image,omitempty"`
}

// Image is a container image.
type Image struct {
	Name string `json:"name"`
	Tag  string `json:"tag,omitempty"`
	UID  string `json:"uid"` // digest, else the image's id at its runtime, else its name
}

// Actor is who acted.
type Actor struct {
	Process *OCSFProcess `json:"process,omitempty"`
	User    *User        `json:"user,omitempty"`
}

// OCSFProcess is a process and its parents.
type OCSFProcess struct {
	PID           uint32       `json:"pid"`
	NamespacePID  uint32       `json:"namespace_pid,omitempty"` // in its own pid namespace
	CreatedTime   int64        `json:"created_time,omitempty"`  // ms
	Name          string       `json:"name,omitempty"`
	CmdLine       string       `json:"cmd_line,omitempty"`
	WorkingDir    string       `json:"working_directory,omitempty"`
	File          *OCSFFile    `json:"file,omitempty"`
	User          *User        `json:"user,omitempty"`
	ParentProcess *OCSFProcess `json:"parent_process,omitempty"`
}

// OCSFFile is a file.
type OCSFFile struct {
	Name   string `json:"name,omitempty"`
	Path   string `json:"path"`
	TypeID int    `json:"type_id"` // 1 regular file
}

// User is a user of a host or of a cluster.
type User struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// API is the API call of an audit event.
type API struct {
	Operation string   `json:"operation"`
	Request   *Request `json:"request,omitempty"`
	Response  *Resp    `json:"response,omitempty"`
}

// Request identifies an API request.
type Request struct {
	UID string `json:"uid"`
}

// Resp is an API response.
type Resp struct {
	Code int64 `json:"code"`
}

// Evidence is one event that the finding stands on.
type Evidence struct {
	UID        string       `json:"uid"`  // event_id
	Name       string       `json:"name"` // class and action
	Process    *OCSFProcess `json:"process,omitempty"`
	File       *OCSFFile    `json:"file,omitempty"`
	Connection *Connection  `json:"connection_info,omitempty"`
	Source     *NetEndpoint `json:"src_endpoint,omitempty"`
	Target     *NetEndpoint `json:"dst_endpoint,omitempty"`
	Query      *DNSQuery    `json:"query,omitempty"`
	API        *API         `json:"api,omitempty"`
	// Data is the event as it is stored: its columns that have a value, by name.
	Data map[string]any `json:"data,omitempty"`
}

// Connection is OCSF network connection information.
type Connection struct {
	DirectionID int    `json:"direction_id"` // 0 unknown, 1 inbound, 2 outbound
	Protocol    string `json:"protocol_name,omitempty"`
}

// NetEndpoint is one end of a connection.
type NetEndpoint struct {
	IP       string `json:"ip,omitempty"`
	Port     uint64 `json:"port,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	Name     string `json:"name,omitempty"` // pod, service or node
}

// DNSQuery is a question.
type DNSQuery struct {
	Hostname string `json:"hostname"`
	Type     string `json:"type,omitempty"`
}

// Resource is a Kubernetes object concerned.
type Resource struct {
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Type      string `json:"type"`
	UID       string `json:"uid,omitempty"`
}

// FindingExtra is what OCSF has no attribute for.
type FindingExtra struct {
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"`
	Rule      string    `json:"rule"`
	Priority  string    `json:"priority"`
	Source    string    `json:"source"` // of the rule: syscall or k8s_audit
	Class     string    `json:"event_class"`
	Time      time.Time `json:"time"`
	Namespace string    `json:"k8s_namespace_name,omitempty"`
	Pod       string    `json:"k8s_pod_name,omitempty"`
	Workload  string    `json:"k8s_workload,omitempty"` // kind/name
	// SessionLeader is the leader of the acting process's session; ExecPID the
	// process that was put into the container from outside and that it descends
	// from, 0 when there is none.
	SessionLeader  *OCSFProcess `json:"session_leader,omitempty"`
	ExecPID        uint32       `json:"container_exec_pid,omitempty"`
	References     []string     `json:"references,omitempty"`
	FalsePositives []string     `json:"false_positives,omitempty"`
	// Why has the values of the fields that made the rule's condition hold.
	Why map[string]string `json:"why,omitempty"`
	// Fields are those of the rule's output.
	Fields map[string]string `json:"output_fields"`
	// Correlation is set for a rule about several events.
	Correlation *Correlation `json:"correlation,omitempty"`
}

// Correlation says which events made an alert of a rule about several events.
type Correlation struct {
	Kind   string            `json:"kind"` // count, distinct, sequence, absence, baseline or suppress
	Key    map[string]string `json:"key"`  // values of the fields under by
	Count  int               `json:"count"`
	Values int               `json:"distinct,omitempty"`
	Last   time.Time         `json:"last"` // time of the last event
}

// Hash128 is the hash behind event ids and alert ids: XXH3-128 over the parts,
// each preceded by its length so that no two lists of parts run together. It
// separates events; it is no protection against someone who forges them.
func Hash128(parts ...string) [16]byte {
	var h xxh3.Hasher
	var n [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.WriteString(p)
	}
	return h.Sum128().Bytes()
}

// FormatID renders an id as the UUID text that ClickHouse shows for it.
func FormatID(id [16]byte) string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}
