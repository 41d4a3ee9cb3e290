// Package kubetest answers lists and watches over HTTPS as a kube-apiserver
// does, as far as informers of client-go ask: JSON and protobuf, resource
// versions, a token, refusals, history that is gone, and going away and coming
// back at the same address. What is behind it is what a test puts there; what
// speaks to it is the real client. Parts that need a real API server are
// tested in test/kube.
package kubetest

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
)

// Object is any object of the API.
type Object interface {
	runtime.Object
	metav1.Object
}

// Server is an API server. Its methods are safe for concurrent use.
type Server struct {
	addr string
	tls  *tls.Config
	ca   []byte // PEM
	srv  *http.Server

	mu       sync.Mutex
	version  int
	kinds    map[string]*kind // by path
	denied   map[string]bool  // by path
	asked    map[string]bool  // "list pods", "watch pods"
	changed  chan struct{}    // closed when something has changed
	encoders map[string]runtime.Encoder
	older    atomic.Bool
}

// kind is what there is of one kind of object.
type kind struct {
	list    metav1.TypeMeta
	objects map[string]Object // by namespace/name
	history []change          // by version
}

type change struct {
	version int
	event   string // ADDED, MODIFIED, DELETED
	object  Object
}

const token = "a-token"

// maxHistory bounds what a watch can go on from, by kind.
const maxHistory = 20000

const jsonType, protobufType = "application/json", "application/vnd.kubernetes.protobuf"

// New starts a server with these objects.
func New(objects ...Object) (*Server, error) {
	s := &Server{addr: "127.0.0.1:0", version: 100, kinds: map[string]*kind{}, denied: map[string]bool{}, asked: map[string]bool{}, changed: make(chan struct{}),
		encoders: map[string]runtime.Encoder{protobufType: protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)}}
	for _, o := range objects {
		s.Put(o)
	}
	lend := httptest.NewTLSServer(nil) // for its certificate
	s.tls = &tls.Config{Certificates: lend.TLS.Certificates}
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: lend.Certificate().Raw})
	lend.Close()
	return s, s.Up()
}

// Start is New for a test, at whose end the server ends.
func Start(t testing.TB, objects ...Object) *Server {
	t.Helper()
	s, err := New(objects...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Down)
	return s
}

// Up makes the server answer, at the address that it had before.
func (s *Server) Up() error {
	var ln net.Listener
	var err error
	for range 50 { // the port may still be closing
		if ln, err = net.Listen("tcp", s.addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	s.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	s.srv = &http.Server{Handler: s, TLSConfig: s.tls.Clone(), BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: log.New(io.Discard, "", 0)}
	s.srv.RegisterOnShutdown(cancel)
	srv := s.srv
	go func() { _ = srv.ServeTLS(ln, "", "") }() // ends with Down
	return nil
}

// Down ends the server and its connections.
func (s *Server) Down() {
	if s.srv != nil {
		_ = s.srv.Close()
		s.srv = nil
	}
}

// Address is the server's host:port.
func (s *Server) Address() string { return s.addr }

// Kubeconfig writes a file into dir whose context "right" leads here; its
// current context does not.
func (s *Server) Kubeconfig(dir string) (path string, err error) {
	path = filepath.Join(dir, "kubeconfig")
	return path, os.WriteFile(path, []byte(fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: wrong
clusters:
- {name: right, cluster: {server: "https://%s", certificate-authority-data: %s}}
- {name: wrong, cluster: {server: "https://127.0.0.1:1"}}
users:
- {name: u, user: {token: %s}}
contexts:
- {name: right, context: {cluster: right, user: u}}
- {name: wrong, context: {cluster: wrong, user: u}}
`, s.addr, base64.StdEncoding.EncodeToString(s.ca), token)), 0o600)
}

// Put creates an object or changes it.
func (s *Server) Put(o Object) { s.change(o, false) }

// Delete deletes an object; o is its last state.
func (s *Server) Delete(o Object) { s.change(o, true) }

func (s *Server) change(o Object, gone bool) {
	o = o.DeepCopyObject().(Object)
	gvks, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(err) // a type that the API does not have
	}
	gvk := gvks[0]
	o.GetObjectKind().SetGroupVersionKind(gvk)
	plural, _ := meta.UnsafeGuessKindToResource(gvk)
	path := "/apis/" + gvk.Group + "/" + gvk.Version + "/" + plural.Resource
	if gvk.Group == "" {
		path = "/api/" + gvk.Version + "/" + plural.Resource
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[path]
	if k == nil {
		k = &kind{list: metav1.TypeMeta{Kind: gvk.Kind + "List", APIVersion: gvk.GroupVersion().String()}, objects: map[string]Object{}}
		s.kinds[path] = k
	}
	s.version++
	key, event := o.GetNamespace()+"/"+o.GetName(), "ADDED"
	o.SetResourceVersion(strconv.Itoa(s.version))
	switch {
	case gone:
		event = "DELETED"
		delete(k.objects, key)
	case k.objects[key] != nil:
		event = "MODIFIED"
		fallthrough
	default:
		k.objects[key] = o
	}
	if k.history = append(k.history, change{s.version, event, o}); len(k.history) > maxHistory {
		k.history = slices.Clone(k.history[maxHistory/2:])
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// Deny makes a resource ("pods") forbidden, or allowed again.
func (s *Server) Deny(resource string, denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[resource] = denied
}

// Forget drops what watches could go on from, as compaction does.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kinds {
		k.history = nil
	}
}

// Asked returns what clients have done, as "list apps/replicasets", sorted.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for a := range s.asked {
		out = append(out, a)
	}
	slices.Sort(out)
	return out
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(code int, reason metav1.StatusReason) {
		w.Header().Set("Content-Type", jsonType)
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: string(reason)})
	}
	verb, watch := "list", r.URL.Query().Get("watch") != ""
	if watch {
		verb = "watch"
	}
	// /api/v1/pods, /apis/apps/v1/replicasets
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	group, resource := "", parts[len(parts)-1]
	if len(parts) == 4 {
		group = parts[1] + "/"
	}
	s.mu.Lock()
	k, denied := s.kinds[r.URL.Path], s.denied[resource]
	s.asked[verb+" "+group+resource] = true
	if k == nil {
		// A kind of which there is nothing.
		k = &kind{objects: map[string]Object{}, list: listOf(group, parts[len(parts)-2], resource)}
		if k.list.Kind != "" {
			s.kinds[r.URL.Path] = k
		}
	}
	s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer "+token:
		fail(http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
		return
	case k.list.Kind == "" || r.Method != http.MethodGet:
		fail(http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	case denied:
		fail(http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	}
	media := jsonType
	if strings.Contains(r.Header.Get("Accept"), protobufType) {
		media = protobufType
	}
	if !watch {
		s.list(w, k, media)
		return
	}
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	if initial && s.older.Load() {
		fail(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		return
	}
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil && !initial {
		fail(http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	s.watch(w, r, k, media, from, initial)
}

// Older makes the server one that streams no lists, as Kubernetes before 1.32.
func (s *Server) Older() { s.older.Store(true) }

// listOf finds the list type of a resource among those that the API has.
func listOf(group, version, resource string) metav1.TypeMeta {
	group = strings.TrimSuffix(group, "/")
	for gvk := range scheme.Scheme.AllKnownTypes() {
		if gvk.Group == group && gvk.Version == version && !strings.HasSuffix(gvk.Kind, "List") {
			if plural, _ := meta.UnsafeGuessKindToResource(gvk); plural.Resource == resource {
				return metav1.TypeMeta{Kind: gvk.Kind + "List", APIVersion: gvk.GroupVersion().String()}
			}
		}
	}
	return metav1.TypeMeta{}
}

func (s *Server) encode(o runtime.Object, media string, w io.Writer) error {
	if media == jsonType {
		return json.NewEncoder(w).Encode(o)
	}
	return s.encoders[media].Encode(o, w)
}

func (s *Server) list(w http.ResponseWriter, k *kind, media string) {
	list, err := scheme.Scheme.New(k.list.GroupVersionKind())
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	items := make([]runtime.Object, 0, len(k.objects))
	for _, o := range k.objects {
		items = append(items, o) // not changed once they are here
	}
	version := s.version
	s.mu.Unlock()
	if err := meta.SetList(list, items); err != nil {
		panic(err)
	}
	list.(metav1.ListInterface).SetResourceVersion(strconv.Itoa(version))
	list.GetObjectKind().SetGroupVersionKind(k.list.GroupVersionKind())
	w.Header().Set("Content-Type", media)
	_ = s.encode(list, media, w)
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, k *kind, media string, from int, initial bool) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", media)
	if media == protobufType {
		w.Header().Set("Content-Type", media+";stream=watch")
	}
	w.WriteHeader(http.StatusOK)
	if initial {
		var err error
		if from, err = s.initial(w, k, media); err != nil {
			return
		}
	}
	for {
		s.mu.Lock()
		changed := s.changed
		i, _ := slices.BinarySearchFunc(k.history, from+1, func(c change, v int) int { return c.version - v })
		send := slices.Clone(k.history[i:])
		s.mu.Unlock()
		for _, c := range send {
			if s.event(w, c, media) != nil {
				return
			}
			from = c.version
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// initial writes what there is as a watch does that is asked for it (KEP-3157),
// and the bookmark after it; it returns the version to go on from.
func (s *Server) initial(w io.Writer, k *kind, media string) (version int, err error) {
	s.mu.Lock()
	items := make([]Object, 0, len(k.objects))
	for _, o := range k.objects {
		items = append(items, o)
	}
	version = s.version
	s.mu.Unlock()
	for _, o := range items {
		if err := s.event(w, change{event: "ADDED", object: o}, media); err != nil {
			return 0, err
		}
	}
	gvk := k.list.GroupVersionKind()
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	o, err := scheme.Scheme.New(gvk)
	if err != nil {
		panic(err)
	}
	mark := o.(Object)
	mark.GetObjectKind().SetGroupVersionKind(gvk)
	mark.SetResourceVersion(strconv.Itoa(version))
	mark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return version, s.event(w, change{event: "BOOKMARK", object: mark}, media)
}

// event writes an event of a watch; protobuf ones have their length before
// them.
func (s *Server) event(w io.Writer, c change, media string) error {
	var object strings.Builder
	if err := s.encode(c.object, media, &object); err != nil {
		return err
	}
	e := metav1.WatchEvent{Type: c.event, Object: runtime.RawExtension{Raw: []byte(object.String())}}
	if media == jsonType {
		return json.NewEncoder(w).Encode(e)
	}
	data, err := e.Marshal()
	if err != nil {
		return err
	}
	frame := []byte{byte(len(data) >> 24), byte(len(data) >> 16), byte(len(data) >> 8), byte(len(data))}
	_, err = w.Write(append(frame, data...))
	return err
}
