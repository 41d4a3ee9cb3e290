package schemas

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"
)

// Streams.
const (
	StreamRaw    = "PICKET_RAW"
	StreamEvents = "PICKET_EVENTS"
	StreamMatch  = "PICKET_MATCH"
	StreamAlerts = "PICKET_ALERTS"
	StreamDead   = "PICKET_DEAD"
)

// Key-value buckets.
const (
	BucketMetadata    = "picket_metadata"
	BucketCheckpoints = "picket_checkpoints"
	BucketState       = "picket_state"
	BucketControl     = "picket_control"
)

// Durable consumers. They exist before the first publish, because
// PICKET_EVENTS keeps a message only while a durable still wants it.
const (
	DurableEnricher     = "enricher"      // on PICKET_RAW
	DurableDetector     = "detector"      // on PICKET_EVENTS
	DurableSink         = "sink"          // on PICKET_EVENTS
	DurableAlertsWriter = "alerts-writer" // on PICKET_ALERTS
)

// DurableMatch is the durable of a partition of PICKET_MATCH.
func DurableMatch(partition int) string { return "correlate-" + strconv.Itoa(partition) }

// MatchGroup is the priority group of those durables: the server pins it to one
// client at a time.
const MatchGroup = "owner"

// Message headers.
const (
	HeaderRun        = "Picket-Run"             // random 128-bit id of the publishing run, hex
	HeaderBatch      = "Picket-Batch"           // batch number within the run, from 1
	HeaderRows       = "Picket-Rows"            // rows in this batch
	HeaderCumulative = "Picket-Cumulative-Rows" // rows of the run on this subject up to and with this batch
	HeaderVersion    = "Picket-Schema-Version"  // SchemaVersion of the writer
	HeaderBatchID    = "Picket-Batch-Id"        // id of the raw batch, kept through every hop
	HeaderReplayed   = "Picket-Replayed"        // "1": may have been published before; look the batch id up
	HeaderReason     = "Picket-Reason"          // dead letters: why
	HeaderStream     = "Picket-Stream"          // dead letters: stream it came from
	HeaderSequence   = "Picket-Sequence"        // dead letters: sequence in that stream
	HeaderSubject    = "Picket-Subject"         // dead letters: subject it came on
	HeaderLength     = "Picket-Length"          // dead letters: length before cutting
	HeaderSHA256     = "Picket-Sha256"          // dead letters: hash before cutting
)

// Bounds of messages.
const (
	// MaxBatchBytes is the largest encoded batch; NATS' default max_payload
	// is 1 MiB.
	MaxBatchBytes = 512 << 10
	// MaxDeadBytes is how much of an unprocessable payload is kept.
	MaxDeadBytes = 64 << 10
	// DuplicatesWindow is how long a stream remembers message ids.
	DuplicatesWindow = 30 * time.Minute
	// Partitions is the number of partitions of PICKET_EVENTS.
	Partitions = 16
	// MatchPartitions is the number of partitions of PICKET_MATCH.
	MatchPartitions = 64
)

// Loss reasons: the one list of how events can be lost or set aside. Every
// loss is counted under one of them.
const (
	// LossRingFull: the kernel's ring buffer had no room.
	LossRingFull = "ring_full"
	// LossRateLimited: left out by the sensor's programs, because one container
	// filled a ring buffer that was nearly full.
	LossRateLimited = "rate_limited"
	// LossRingEmptied: taken out of the kernel's ring buffer by somebody else, or
	// written over because somebody else moved its position.
	LossRingEmptied = "ring_emptied"
	// LossTampered: somebody else changed or detached the sensor's programs, or
	// moved the position of a ring buffer.
	// Counted once for each change that is found: how many events it cost is
	// not known. health_subject says what it was.
	LossTampered = "tampered"
	// LossSensorRestart: read from the kernel by a sensor that died before
	// it had handed them on.
	LossSensorRestart = "sensor_restart"
	// LossDecode: a kernel sample the sensor could not read.
	LossDecode = "decode"
	// LossSpoolFull: NATS was away longer than the sensor's spool could hold.
	LossSpoolFull = "spool_full"
	// LossSpoolDamaged: in a file of the spool that cannot be read back, as the
	// death of a machine may leave one.
	LossSpoolDamaged = "spool_damaged"
	// LossStreamLimit: a consumer was away longer than a stream could hold.
	LossStreamLimit = "stream_limit"
	// LossDeadLetter: unprocessable, kept on PICKET_DEAD.
	LossDeadLetter = "dead_letter"
	// LossOversized: one event larger than a batch may be.
	LossOversized = "oversized"
	// LossSourceGap: the source removed audit records before they were read;
	// counted once for each gap, since nobody knows how many. health_subject is
	// the source, and where it is known the range of time.
	LossSourceGap = "source_gap"
	// LossSourceLate: the newest audit event of a source is older than
	// lag_alert: what happens now is not seen yet. Counted once for each time
	// that begins; nothing is lost by it.
	LossSourceLate = "source_late"
	// LossSourceSilent: nothing came from a source for silent_alert. Counted
	// once for each time that begins.
	LossSourceSilent = "source_silent"
)

// CounterOffers and CounterLacks begin the names of a sensor's counters, each 1, of what the node's kernel has, and
// lacks, of that which not every kernel has.
const (
	CounterOffers = "kernel_offers_"
	CounterLacks  = "kernel_lacks_"
)

// LossReasons lists every loss reason.
func LossReasons() []string {
	return []string{LossRingFull, LossRateLimited, LossRingEmptied, LossTampered, LossSensorRestart, LossDecode, LossSpoolFull, LossSpoolDamaged, LossStreamLimit, LossDeadLetter, LossOversized, LossSourceGap, LossSourceLate, LossSourceSilent}
}

// Token makes a name safe as one token of a NATS subject: dots, spaces,
// wildcards and control characters become underscores; empty is "_".
func Token(name string) string {
	if name == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '*' || r == '>' || r <= ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, name)
}

// RawSubject is where a sensor or ingester publishes a class.
func RawSubject(cluster, node string, c Class) string {
	return "picket.raw." + Token(cluster) + "." + Token(node) + "." + c.String()
}

// ParseRawSubject returns the tokens of a raw subject. Cluster and node are
// what the publisher's credentials allow, whatever its payload says.
func ParseRawSubject(subject string) (cluster, node string, c Class, err error) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0] != "picket" || t[1] != "raw" {
		return "", "", 0, fmt.Errorf("subject %q is not picket.raw.<cluster>.<node>.<class>", subject)
	}
	c, err = ParseClass(t[4])
	return t[2], t[3], c, err
}

// EventsSubject is where the enricher publishes; the partition follows from
// the node, so that one node's events stay in order.
func EventsSubject(cluster, node string, c Class) string {
	h := fnv.New32a()
	h.Write([]byte(node))
	return "picket.events." + Token(cluster) + "." + c.String() + "." + strconv.Itoa(int(h.Sum32()%Partitions))
}

// ParseEventsSubject returns cluster token and class of an events subject.
func ParseEventsSubject(subject string) (cluster string, c Class, err error) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0] != "picket" || t[1] != "events" {
		return "", 0, fmt.Errorf("subject %q is not picket.events.<cluster>.<class>.<partition>", subject)
	}
	c, err = ParseClass(t[3])
	return t[2], c, err
}

// MatchSubject is where the detector publishes what feeds a correlation.
func MatchSubject(partition int) string { return "picket.match." + strconv.Itoa(partition) }

// AlertSubject is where the detector publishes a finding.
func AlertSubject(cluster string, s Severity, namespace, rule string) string {
	return "picket.alerts." + Token(cluster) + "." + s.String() + "." + Token(namespace) + "." + Token(rule)
}

// DeadSubject is where a service publishes what it could not process.
func DeadSubject(service string) string { return "picket.dead." + Token(service) }

// ControlKey is the key in BucketControl that a sensor reads.
func ControlKey(cluster, node string) string { return kvToken(cluster) + "." + kvToken(node) }

// MetadataKey is the key in BucketMetadata of what is known of a cluster's
// object; rest is its kind and UID, "" gives the prefix of all.
func MetadataKey(cluster, rest string) string { return kvToken(cluster) + "." + rest }

// kvToken keeps what a KV key may hold: letters, digits, - _ / =.
func kvToken(name string) string {
	if name == "" {
		return "_"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '/', r == '=':
			return r
		}
		return '_'
	}, name)
}

// BatchIDOf is the Nats-Msg-Id of a raw batch and the batch_id of its rows:
// run is random, so that one node cannot guess another's.
func BatchIDOf(run string, batch uint64) string { return run + "-" + strconv.FormatUint(batch, 10) }
