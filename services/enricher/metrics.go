package enricher

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	received, enriched, duplicate *prometheus.CounterVec // by class
	joined                        *prometheus.CounterVec // by class, outcome
	unknownContainer              *prometheus.CounterVec // by class
	overwritten                   *prometheus.CounterVec // by class
	reduced                       *prometheus.CounterVec // by left_out
	publishErrors, duplicateIDs   prometheus.Counter
	uncorrected, badValues        prometheus.Counter
	metadataWrites                prometheus.Counter
	metadataConflicts             prometheus.Counter
	waiting, inHand               prometheus.Gauge
	waitSeconds                   prometheus.Histogram
	apiErrors                     *prometheus.CounterVec // by status
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_enricher_" + name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_enricher_" + name, Help: help})
		reg.MustRegister(g)
		return g
	}
	m := &metrics{
		received:          counter("received_events_total", "Events taken from PICKET_RAW, again at each delivery: received = enriched + duplicate + lost + in hand.", "class"),
		enriched:          counter("enriched_events_total", "Events that PICKET_EVENTS has taken from this process.", "class"),
		duplicate:         counter("duplicate_events_total", "Events that PICKET_EVENTS had already, from before a crash or a lost acknowledgement.", "class"),
		joined:            counter("joined_events_total", "Events by what the join made of them: host, resolved, unknown_pod, not_synced, no_cluster, foreign_node.", "class", "outcome"),
		unknownContainer:  counter("unknown_container_events_total", "Events whose pod was known, but not yet or never the container: sandboxes, and containers whose status the kubelet had not reported.", "class"),
		overwritten:       counter("overwritten_names_total", "Names of cluster or node in events that were not those of the subject, and were replaced.", "class"),
		reduced:           counter("reduced_batches_total", "Batches that with all columns would have been larger than a batch may be, by what was left out: labels, or everything that was joined.", "left_out"),
		publishErrors:     counter("publish_errors_total", "Attempts to publish to PICKET_EVENTS that failed and were repeated.").WithLabelValues(),
		duplicateIDs:      counter("duplicate_ids_total", "First publishes whose batch id was taken: a sender used an id twice. Published again under another id.").WithLabelValues(),
		uncorrected:       counter("uncorrected_actors_total", "Pods and containers whose events went on without what is known of them, and that were given up: not shown within an hour, or too many.").WithLabelValues(),
		badValues:         counter("metadata_bad_values_total", "Values in the bucket picket_metadata that could not be read, or were too large to be written.").WithLabelValues(),
		metadataWrites:    counter("metadata_writes_total", "Values written to the bucket picket_metadata.").WithLabelValues(),
		metadataConflicts: counter("metadata_conflicts_total", "Writes to the bucket picket_metadata that another replica was faster with.").WithLabelValues(),
		waiting:           gauge("waiting_batches", "Batches that wait for a pod to be known."),
		inHand:            gauge("in_hand_batches", "Batches taken from PICKET_RAW and not settled."),
		waitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "picket_enricher_wait_seconds", Help: "How long batches waited for a pod to be known.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2, 5, 10}}),
		apiErrors: counter("kubernetes_request_errors_total", "Requests to the Kubernetes API that failed, by HTTP status, none when there was no answer.", "status"),
	}
	reg.MustRegister(m.waitSeconds)
	return m
}

// watch registers what is known of the metadata.
func (m *metrics) watch(reg prometheus.Registerer, x *index, w *watcher) {
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "picket_enricher_kubernetes_" + name, Help: help}, f))
	}
	gauge("synced", "1 once the metadata was complete.", func() float64 {
		if w.synced() {
			return 1
		}
		return 0
	})
	gauge("pods", "Pods known, deleted ones included.", func() float64 { n, _ := x.counts(); return float64(n) })
	gauge("deleted_pods", "Deleted pods still known.", func() float64 { _, n := x.counts(); return float64(n) })
}
