package enricher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/features"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// expireInterval is how often deleted objects whose time has come are
// forgotten, should no other deletion do it.
const expireInterval = 30 * time.Second

// connect makes a client of the API that the configuration names. It talks to
// nobody yet. failed is told of every request without an answer ("none") or
// with an error's status; disconnect closes connections that are idle. at is
// where the API server is, if the configuration has its address.
func connect(cfg KubernetesConfig, failed func(status string, err error)) (client kubernetes.Interface, at apiAddress, disconnect func(), err error) {
	rc, err := restConfig(cfg)
	if err != nil {
		return nil, at, nil, err
	}
	at = apiAddressOf(rc.Host)
	rc.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &watched{rt, failed} })
	rc.UserAgent = "picket-enricher"
	// A tenth of the bytes and of the work of JSON.
	rc.AcceptContentTypes, rc.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	hc, err := rest.HTTPClientFor(rc)
	if err != nil {
		return nil, at, nil, fmt.Errorf("kubernetes client: %w", err)
	}
	client, err = kubernetes.NewForConfigAndClient(rc, hc)
	if err != nil {
		return nil, at, nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return client, at, func() { utilnet.CloseIdleConnectionsFor(hc.Transport) }, nil
}

// apiAddressOf returns address and port of a server's URL or host:port; nothing
// where it has a name.
func apiAddressOf(host string) (at apiAddress) {
	u, err := url.Parse(host)
	if err != nil || u.Host == "" {
		if u, err = url.Parse("https://" + host); err != nil {
			return at
		}
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return at
	}
	at.address, at.port = ip.As16(), 443
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return apiAddress{}
		}
		at.port = uint16(port)
	}
	return at
}

// watched reports failed requests. Informers say nothing of an API server that
// refuses connections.
type watched struct {
	http.RoundTripper
	failed func(status string, err error)
}

// RoundTrip implements http.RoundTripper.
func (w *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := w.RoundTripper.RoundTrip(r)
	switch {
	case err != nil && r.Context().Err() == nil:
		w.failed("none", err)
	case err == nil && res.StatusCode >= 400:
		w.failed(strconv.Itoa(res.StatusCode), fmt.Errorf("%s %s: %s", r.Method, r.URL.Path, res.Status))
	}
	return res, err
}

// WrappedRoundTripper gives client-go the transport inside.
func (w *watched) WrappedRoundTripper() http.RoundTripper { return w.RoundTripper }

func restConfig(cfg KubernetesConfig) (*rest.Config, error) {
	if cfg.Kubeconfig == "" {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("kubernetes.enabled is set, kubernetes.kubeconfig is empty, and this is no pod with a service account: %w", err)
		}
		return rc, nil
	}
	rc, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: cfg.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubernetes.kubeconfig %s: %w", cfg.Kubeconfig, err)
	}
	return rc, nil
}

// watcher keeps an index up to date from the API server.
type watcher struct {
	index  *index
	shared *shared // nil: there are no other replicas
	log    *slog.Logger

	informers []informer
	complete  atomic.Bool
	cluster   atomic.Pointer[string] // UID of the namespace kube-system, once known
}

type informer struct {
	name string // of the resource
	of   kind
	cache.SharedIndexInformer
	// fed reports whether the index has everything of the first list.
	fed cache.InformerSynced
}

// newWatcher prepares informers on client; run starts them.
func newWatcher(client kubernetes.Interface, r *reader, x *index, log *slog.Logger) (*watcher, error) {
	w := &watcher{index: x, log: log}
	// Objects come one by one and are trimmed one by one; a list would have all
	// of them in memory, whole, at the start. A server that cannot (before
	// Kubernetes 1.32) is asked for lists. It is client-go's setting for the process.
	if gates, ok := features.FeatureGates().(interface {
		Set(features.Feature, bool) error
	}); ok {
		if err := gates.Set(features.WatchListClient, true); err != nil {
			return nil, fmt.Errorf("kubernetes client: %w", err)
		}
	}
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(r.trim))
	apps, core, jobs := f.Apps().V1(), f.Core().V1(), f.Batch().V1()
	err := errors.Join(
		watch[*pod](w, "pods", core.Pods().Informer()),
		watch[*ownerObject](w, "replicasets", apps.ReplicaSets().Informer()),
		watch[*ownerObject](w, "deployments", apps.Deployments().Informer()),
		watch[*ownerObject](w, "statefulsets", apps.StatefulSets().Informer()),
		watch[*ownerObject](w, "daemonsets", apps.DaemonSets().Informer()),
		watch[*ownerObject](w, "jobs", jobs.Jobs().Informer()),
		watch[*ownerObject](w, "cronjobs", jobs.CronJobs().Informer()),
		watch[*serviceObject](w, "services", core.Services().Informer()),
		watch[*sliceObject](w, "endpointslices", f.Discovery().V1().EndpointSlices().Informer()),
		watch[*nodeObject](w, "nodes", core.Nodes().Informer()),
		watch[*accountObject](w, "serviceaccounts", core.ServiceAccounts().Informer()),
		watch[*namespaceObject](w, "namespaces", core.Namespaces().Informer()),
	)
	return w, err
}

// watch has an informer's objects, all of type T, brought into the index, and
// told to other replicas; from one goroutine.
func watch[T kept](w *watcher, name string, inf cache.SharedIndexInformer) error {
	put := func(obj any) {
		if o, ok := obj.(T); ok {
			w.index.set(o) // first: it adds to a pod what was known before
			w.shared.show(o, false)
			if n, ok := obj.(*namespaceObject); ok && n.name == metav1.NamespaceSystem {
				w.cluster.Store(&n.uid)
			}
		}
	}
	remove := func(o T) {
		w.index.remove(o, time.Now())
		w.shared.show(o, true)
	}
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: put,
		UpdateFunc: func(before, now any) {
			// After a broken watch, an object deleted and made again under
			// its name comes as one update.
			b, ok1 := before.(T)
			n, ok2 := now.(T)
			if ok1 && ok2 && b.id() != n.id() {
				remove(b)
			}
			put(now)
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj // its last state that was seen
			}
			if o, ok := obj.(T); ok {
				remove(o)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	last := time.Time{}
	err = inf.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil && time.Since(last) > time.Minute { // called from the informer's one goroutine
			last = time.Now()
			w.log.Warn("kubernetes watch broke off, trying again; what is known stays in use", "kind", name, "error", err)
		}
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	w.informers = append(w.informers, informer{name, newObjectOf[T]().kind(), inf, reg.HasSynced})
	return nil
}

func newObjectOf[T kept]() (none T) { return none }

// listed returns the resource version that the informers of a kind have come
// to, the lowest of several, and false before all of them have shown their
// first list.
func (w *watcher) listed(k kind) (version uint64, ok bool) {
	for _, inf := range w.informers {
		if inf.of != k {
			continue
		}
		v, _ := strconv.ParseUint(inf.LastSyncResourceVersion(), 10, 64)
		if !inf.fed() {
			return 0, false
		}
		if !ok || v < version {
			version, ok = v, true
		}
	}
	return version, ok
}

// run watches until ctx ends. An API server that is away or refuses stops
// nothing: the informers try again.
func (w *watcher) run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(w.log.Handler()))
	g, ctx := errgroup.WithContext(ctx)
	for _, inf := range w.informers {
		g.Go(func() error {
			inf.RunWithContext(ctx)
			return nil
		})
	}
	g.Go(func() error {
		tick := time.NewTicker(expireInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				w.index.expire()
			}
		}
	})
	return g.Wait()
}

// unsynced names the kinds whose first list is not in the index yet.
func (w *watcher) unsynced() []string {
	var out []string
	for _, inf := range w.informers {
		if !inf.fed() {
			out = append(out, inf.name)
		}
	}
	return out
}

// synced reports whether the index has been complete once: it stays in use
// when the API server goes away.
func (w *watcher) synced() bool {
	if !w.complete.Load() && len(w.unsynced()) == 0 {
		w.complete.Store(true)
	}
	return w.complete.Load()
}

// ready says what is missing, or nil.
func (w *watcher) ready() error {
	if !w.synced() {
		return fmt.Errorf("metadata not complete yet: %s", strings.Join(w.unsynced(), ", "))
	}
	return nil
}

// waitSynced waits until the index is complete, ctx ends or patience is out,
// and reports whether it is complete.
func (w *watcher) waitSynced(ctx context.Context, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if w.synced() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
