package alert

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"picket/internal/batch"
	"picket/schemas"
)

// Actor is whom the event of a finding was of, when not all was known of its
// pod and container.
type Actor struct{ Cluster, PodUID, ContainerID string }

// Uncorrected returns whom a finding's event was of, if it went on without what
// Kubernetes knows of its pod. Findings of rules about several events have
// revisions of their own and are not corrected.
func Uncorrected(f *schemas.Finding) (Actor, bool) {
	if f.Unmapped.Correlation != nil || len(f.Evidences) == 0 {
		return Actor{}, false
	}
	data := f.Evidences[0].Data
	word := func(id schemas.FieldID) string { s, _ := data[id.String()].(string); return s }
	a := Actor{f.Unmapped.Cluster, word(schemas.PodUID), word(schemas.ContainerID)}
	return a, word(schemas.Join) == "unresolved" && a.PodUID != ""
}

// Corrected makes f the next revision of its alert: with what a row of class
// correction says of its pod and container. The rule's condition is not
// evaluated again. Texts that the rule made are left as they were, the message
// has the pod added.
func Corrected(f *schemas.Finding, b *batch.Batch, row int, now time.Time) {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	f.ActivityID, f.TypeUID = 2, 200402
	f.Metadata.Sequence++
	f.Metadata.LoggedTime = now.UnixMilli()
	u := &f.Unmapped
	u.Namespace, u.Pod = cmp.Or(str(schemas.Namespace), u.Namespace), cmp.Or(str(schemas.PodName), u.Pod)
	if w := str(schemas.WorkloadName); w != "" {
		u.Workload = str(schemas.WorkloadKind) + "/" + w
	}
	pod := schemas.Resource{Type: "Pod", Name: u.Pod, Namespace: u.Namespace, UID: str(schemas.PodUID)}
	f.Resources = append(slices.DeleteFunc(f.Resources, func(r schemas.Resource) bool { return r.Type == "Pod" && r.UID == pod.UID }), pod)
	if d := f.Device; d != nil && d.Container != nil {
		d.Container.Name = cmp.Or(str(schemas.K8sContainerName), d.Container.Name)
		if img := str(schemas.ContainerImage); img != "" {
			d.Container.Image = &schemas.Image{Name: img, Tag: str(schemas.ContainerImageTag), UID: cmp.Or(str(schemas.ContainerImageHash), img)}
		}
	}
	data := f.Evidences[0].Data
	for name, v := range values(b, row) {
		if id, ok := schemas.FieldByName(name); ok && id.Field().Enriched {
			data[name] = v
		}
	}
	data[schemas.Join.String()] = "corrected"
	for name, id := range map[string]schemas.FieldID{
		"k8s.pod.name": schemas.PodName, "k8s.ns.name": schemas.Namespace, "container.name": schemas.K8sContainerName,
		"k8s.container.name": schemas.K8sContainerName, "k8s.sa.name": schemas.ServiceAccount,
		"k8s.workload.kind": schemas.WorkloadKind, "k8s.workload.name": schemas.WorkloadName,
		"container.image.repository": schemas.ContainerImage, "container.image.tag": schemas.ContainerImageTag, "container.image.digest": schemas.ContainerImageHash,
	} {
		if _, asked := u.Fields[name]; asked && str(id) != "" {
			u.Fields[name] = str(id)
		}
	}
	said := []string{"pod=" + u.Namespace + "/" + u.Pod}
	if u.Workload != "" {
		said = append(said, "workload="+u.Workload)
	}
	f.Message += " (known later: " + strings.Join(said, " ") + ")"
}
