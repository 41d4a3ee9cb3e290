package sensor

import (
	"github.com/prometheus/client_golang/prometheus"

	"picket/services/sensor/containerid"
	"picket/services/sensor/proctree"
)

// countEvictions makes metrics of what the sensor's caches forgot because they
// were full. It loses no event: what is asked for again is looked up again.
func countEvictions(reg prometheus.Registerer, tree *proctree.Tree, cgroups *containerid.Resolver) {
	counter := func(name, help string, labels prometheus.Labels, n func() uint64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return float64(n()) }))
	}
	const processes, help = "picket_sensor_process_tree_evictions_total", "Processes forgotten for want of room: exited ones before their time, and living ones (or such whose exit was lost)."
	counter(processes, help, prometheus.Labels{"state": "exited"}, func() uint64 { n, _ := tree.Evicted(); return n })
	counter(processes, help, prometheus.Labels{"state": "living"}, func() uint64 { _, n := tree.Evicted(); return n })
	counter("picket_sensor_cgroup_evictions_total", "Cgroups forgotten for want of room.", nil, cgroups.Evicted)
}
