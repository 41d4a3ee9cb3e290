package aks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// Diagnostic settings write one append blob for each cluster, category and
// hour (https://learn.microsoft.com/azure/azure-monitor/platform/resource-logs):
//
//	insights-logs-kube-audit/resourceId=/SUBSCRIPTIONS/…/MANAGEDCLUSTERS/NAME/y=2026/m=11/d=23/h=10/m=00/PT1H.json
//
// The hour is that of the records; Azure appends to it for a while after.
const (
	resourcePrefix = "resourceId="
	yearPrefix     = "y="
)

var hourOf = regexp.MustCompile(`^y=(\d{4})/m=(\d\d)/d=(\d\d)/h=(\d\d)/m=\d\d/[^/]+\.json$`)

const (
	// piece is how much of a blob is asked for at a time.
	piece = 1 << 20
	// maxLine is the longest line that is read; a longer one is refused.
	maxLine = 8 << 20
	// maxPrefixes, maxFolders and maxPages bound what is listed of an account, and
	// of one day of one cluster.
	maxPrefixes = 4096
	maxPages    = 16
	maxFolders  = 16
	// pieceFor is how long one piece may take.
	pieceFor = 2 * time.Minute
)

// account is one storage account.
type account struct {
	*Provider
	cfg   StorageConfig
	known []string
}

func (a *account) name() string      { return a.cfg.Name }
func (a *account) listed() *[]string { return &a.known }

// source returns the source of a container and prefix, joined by a slash.
func (a *account) source(name string) source.Source {
	c, prefix, _ := strings.Cut(name, "/")
	sum := sha256.Sum256([]byte(strings.ToLower(name)))
	cluster := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, clusterName(strings.TrimSuffix(prefix, "/")))
	return &blobs{
		account: a, container: c, prefix: prefix,
		label: fmt.Sprintf("%s-%.48s-%s", a.cfg.Name, cluster, hex.EncodeToString(sum[:4])),
	}
}

// open returns a client. It connects when it is used. Credentials are read
// here.
func (a *account) open() (*azblob.Client, error) {
	opt := &azblob.ClientOptions{}
	opt.Telemetry = policy.TelemetryOptions{ApplicationID: "picket"}
	if a.cfg.URL != "" {
		return azblob.NewClient(a.cfg.URL, a.cred, opt)
	}
	s, err := readSecret(a.cfg.ConnectionStringFile)
	if err != nil {
		return nil, err
	}
	c, err := azblob.NewClientFromConnectionString(s, opt)
	if err != nil {
		// The SDK's errors quote parts of it.
		return nil, fmt.Errorf("connection_string_file: %s has no connection string of a storage account (DefaultEndpointsProtocol=https;AccountName=…;AccountKey=…)", a.cfg.ConnectionStringFile)
	}
	return c, nil
}

// list returns the clusters' folders in the containers.
func (a *account) list(ctx context.Context) ([]string, error) {
	client, err := a.open()
	if err != nil {
		return nil, err
	}
	containers := a.cfg.Containers
	if len(containers) == 0 {
		containers = []string{"insights-logs-" + categoryAudit, "insights-logs-" + categoryAuditAdmin}
	}
	found := []string{}
	missing := 0
	for _, name := range containers {
		err := a.walk(ctx, client.ServiceClient().NewContainerClient(name), resourcePrefix, 0, func(prefix string) error {
			if _, ok := a.cluster(a.cfg.Name, strings.Trim(strings.TrimPrefix(prefix, resourcePrefix), "/")); !ok {
				return nil
			}
			if found = append(found, name+"/"+prefix); len(found) > maxPrefixes {
				return fmt.Errorf("more than %d clusters: name those to read in aks.clusters", maxPrefixes)
			}
			return nil
		})
		if bloberror.HasCode(err, bloberror.ContainerNotFound) {
			missing++
		} else if err != nil {
			return nil, fmt.Errorf("container %s: %w", name, remedy(err))
		}
	}
	if missing == len(containers) {
		return nil, fmt.Errorf("the account has none of the containers %s: Azure makes them with the first record", strings.Join(containers, ", "))
	}
	return found, nil
}

// walk calls each with the folders that have folders of years. (A delimiter of
// more than one character would find them at once; Azurite does not know it.)
func (a *account) walk(ctx context.Context, c *container.Client, prefix string, depth int, each func(string) error) error {
	if depth > maxFolders {
		return fmt.Errorf("folders below %.200q are deeper than those of diagnostic settings", prefix)
	}
	pages := c.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &prefix})
	for pages.More() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return err
		}
		for _, p := range page.Segment.BlobPrefixes {
			if strings.HasPrefix(strings.TrimPrefix(*p.Name, prefix), yearPrefix) {
				return each(prefix)
			}
			if err := a.walk(ctx, c, *p.Name, depth+1, each); err != nil {
				return err
			}
		}
	}
	return nil
}

// remedy adds what to do about an answer that says little.
func remedy(err error) error {
	if bloberror.HasCode(err, bloberror.AuthorizationPermissionMismatch, bloberror.AuthorizationFailure, bloberror.AuthenticationFailed) {
		return fmt.Errorf("%w (the credentials need the role Storage Blob Data Reader, and the account's firewall must let this address in)", safe(err))
	}
	return safe(err)
}

// blobAt is how far a blob was read.
type blobAt struct {
	Offset int64 `json:"offset"`
	// Modified is when what was read last had been appended.
	Modified time.Time `json:"modified"`
}

// blobsAt is the checkpoint of one cluster's blobs.
type blobsAt struct {
	// Floor is the first hour whose blob may still grow. What is before it is
	// done.
	Floor time.Time `json:"floor"`
	// Blobs are those from Floor on, by name behind the cluster's folder.
	Blobs map[string]blobAt `json:"blobs"`
}

// blobs is the source of one cluster's blobs in one container.
type blobs struct {
	*account
	container string
	prefix    string // the cluster's folder, with a slash at its end
	label     string
	sink      source.Sink
	at        blobsAt
	state     atomic.Pointer[error]
}

// Name implements source.Source.
func (b *blobs) Name() string { return b.label }

// Kind implements source.Source.
func (b *blobs) Kind() string { return kind }

// Ready implements source.Source.
func (b *blobs) Ready() error {
	if e := b.state.Load(); e != nil {
		return *e
	}
	return errNotYet
}

// Run implements source.Source.
func (b *blobs) Run(ctx context.Context, sink source.Sink) error {
	b.sink = sink
	if _, err := sink.Checkpoint(&b.at); err != nil {
		return err
	}
	if b.at.Blobs == nil {
		b.at.Blobs = map[string]blobAt{}
	}
	t := newTrouble(b.log, b.label)
	for {
		err := b.poll(ctx)
		if ctx.Err() != nil {
			return nil
		}
		b.state.Store(&err)
		if err != nil {
			t.wait(ctx, err, 0)
			continue
		}
		t.over()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(b.Provider.cfg.PollEvery):
		}
	}
}

// item is one blob as it was listed.
type item struct {
	name     string // behind the cluster's folder
	hour     time.Time
	size     int64
	modified time.Time
}

// poll reads what was appended since the last time.
func (b *blobs) poll(ctx context.Context) error {
	client, err := b.open()
	if err != nil {
		return err
	}
	c := client.ServiceClient().NewContainerClient(b.container)
	if b.at.Floor.IsZero() {
		if err := b.begin(ctx, c); err != nil {
			return err
		}
	}
	var gone lost
	for day := b.at.Floor.Truncate(24 * time.Hour); ; day = day.Add(24 * time.Hour) {
		now := time.Now().UTC()
		if day.After(now.Add(time.Hour)) {
			return b.gap(ctx, &gone, now)
		}
		items, err := b.day(ctx, c, day)
		if err != nil {
			return err
		}
		b.missing(&gone, items, day)
		for _, it := range items {
			if it.hour.Before(b.at.Floor) {
				continue
			}
			if it.hour.After(gone.last) {
				if err := b.gap(ctx, &gone, it.hour); err != nil {
					return err
				}
			}
			if err := b.read(ctx, c, it, b.closed(it.hour, now)); err != nil {
				return err
			}
		}
		if len(gone.names) == 0 { // else it is told first
			if err := b.done(ctx, day, now); err != nil {
				return err
			}
		}
	}
}

// closed reports whether the blob of an hour grows no more.
func (b *blobs) closed(hour, now time.Time) bool {
	return !hour.Add(time.Hour + b.Provider.cfg.Late).After(now)
}

// begin sets the position of a source that has none.
func (b *blobs) begin(ctx context.Context, c *container.Client) error {
	now := time.Now().UTC()
	window := now.Add(-b.Provider.cfg.Late).Truncate(time.Hour) // the first hour that is not closed, or one before
	switch b.Provider.cfg.Start {
	case source.StartNow:
		for day := window.Truncate(24 * time.Hour); !day.After(now.Add(time.Hour)); day = day.Add(24 * time.Hour) {
			items, err := b.day(ctx, c, day)
			if err != nil {
				return err
			}
			for _, it := range items {
				b.at.Blobs[it.name] = blobAt{it.size, it.modified}
			}
		}
		b.at.Floor = window
	case source.StartBeginning:
		b.at.Floor = window
		pages := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &b.prefix})
	look:
		for n := 0; n < maxPages && pages.More(); n++ { // a page can be empty
			page, err := pages.NextPage(ctx)
			if err != nil {
				return remedy(err)
			}
			for _, i := range page.Segment.BlobItems {
				if it, ok := b.parse(i); ok {
					if it.hour.Before(window) {
						b.at.Floor = it.hour
					}
					break look
				}
			}
		}
	default:
		b.at.Floor = b.Provider.cfg.Start.Time(now).UTC().Truncate(time.Hour)
		if b.at.Floor.After(window) {
			b.at.Floor = window
		}
	}
	return b.sink.Mark(ctx, b.checkpoint())
}

// checkpoint returns a copy of the position.
func (b *blobs) checkpoint() blobsAt {
	return blobsAt{Floor: b.at.Floor, Blobs: maps.Clone(b.at.Blobs)}
}

func (b *blobs) parse(i *container.BlobItem) (item, bool) {
	if i.Name == nil || i.Properties == nil || i.Properties.ContentLength == nil || i.Properties.LastModified == nil {
		return item{}, false
	}
	name := strings.TrimPrefix(*i.Name, b.prefix)
	hour, ok := hourIn(name)
	return item{name, hour, *i.Properties.ContentLength, i.Properties.LastModified.UTC()}, ok
}

// hourIn returns the hour in a blob's name.
func hourIn(name string) (time.Time, bool) {
	m := hourOf.FindStringSubmatch(name)
	if m == nil {
		return time.Time{}, false
	}
	hour, err := time.Parse("2006-01-02T15", m[1]+"-"+m[2]+"-"+m[3]+"T"+m[4])
	return hour, err == nil
}

// day lists the blobs of one day, in order.
func (b *blobs) day(ctx context.Context, c *container.Client, day time.Time) ([]item, error) {
	ctx, cancel := context.WithTimeout(ctx, pieceFor)
	defer cancel()
	prefix := b.prefix + day.Format("y=2006/m=01/d=02/")
	pages := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix})
	var items []item
	for n := 0; pages.More(); n++ {
		if n == maxPages {
			return nil, fmt.Errorf("%s/%s: more blobs than a day of diagnostic settings has", b.container, prefix)
		}
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, remedy(err)
		}
		for _, i := range page.Segment.BlobItems {
			if it, ok := b.parse(i); ok {
				items = append(items, it)
			}
		}
	}
	slices.SortFunc(items, func(x, y item) int { return strings.Compare(x.name, y.name) })
	return items, nil
}

// lost are blobs that were not read to their end and are gone.
type lost struct {
	names []string
	from  time.Time // what was appended after it may be lost
	last  time.Time // the newest one's hour
}

// missing looks for blobs of the day that should be there and are not.
func (b *blobs) missing(gone *lost, items []item, day time.Time) {
	for name, at := range b.at.Blobs {
		hour, ok := hourIn(name)
		if !ok || !hour.Truncate(24*time.Hour).Equal(day) || slices.ContainsFunc(items, func(it item) bool { return it.name == name }) {
			continue
		}
		if len(gone.names) == 0 || at.Modified.Before(gone.from) {
			gone.from = at.Modified
		}
		if hour.After(gone.last) {
			gone.last = hour
		}
		gone.names = append(gone.names, name)
	}
}

// gap tells what is lost with blobs that are gone: what was appended to them
// after they were read, and the blobs behind them up to the next that is
// there, which cannot have been deleted before them.
func (b *blobs) gap(ctx context.Context, gone *lost, to time.Time) error {
	if len(gone.names) == 0 {
		return nil
	}
	b.sink.Gap("blobs were deleted before they were read to their end: the audit records in them are lost", "container", b.container,
		"from", gone.from, "to", to, "remedy", "keep blobs longer (lifecycle management of the storage account), or see why they were not read")
	for _, name := range gone.names {
		delete(b.at.Blobs, name)
	}
	*gone = lost{}
	return b.sink.Mark(ctx, b.checkpoint())
}

// done closes the hours up to the end of a day, if their time is over.
func (b *blobs) done(ctx context.Context, day, now time.Time) error {
	floor := now.Add(-b.Provider.cfg.Late - time.Hour).Truncate(time.Hour).Add(time.Hour)
	if end := day.Add(24 * time.Hour); end.Before(floor) {
		floor = end
	}
	if !floor.After(b.at.Floor) {
		return nil
	}
	b.at.Floor = floor
	if len(b.at.Blobs) > 0 {
		below := floor.Format("y=2006/m=01/d=02/h=15/")
		maps.DeleteFunc(b.at.Blobs, func(name string, _ blobAt) bool { return name < below })
	}
	return b.sink.Mark(ctx, b.checkpoint())
}

// read reads a blob from where it was read to, to the size that was listed.
// last says that it grows no more, so that its last line needs no end.
func (b *blobs) read(ctx context.Context, c *container.Client, it item, last bool) error {
	at := b.at.Blobs[it.name]
	if it.size < at.Offset {
		b.sink.Gap("a blob is shorter than what was read of it: it was replaced; it is read from its beginning", "container", b.container, "blob", it.name,
			"from", at.Modified, "to", it.modified, "offset", at.Offset, "size", it.size)
		at.Offset = 0
	}
	if it.size == at.Offset {
		return nil
	}
	l := lines{start: at.Offset}
	for l.next() < it.size {
		n := min(piece, it.size-l.next())
		if err := b.fetch(ctx, c, it, l.next(), n, &l); err != nil {
			return err
		}
		if err := b.hand(ctx, it, &l, last && l.next() == it.size); err != nil {
			return err
		}
	}
	return nil
}

// fetch appends n bytes of a blob to l.
func (b *blobs) fetch(ctx context.Context, c *container.Client, it item, offset, n int64, l *lines) error {
	ctx, cancel := context.WithTimeout(ctx, pieceFor)
	defer cancel()
	answer, err := c.NewBlobClient(b.prefix+it.name).DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset, Count: n}})
	if err != nil {
		return remedy(err)
	}
	body := answer.NewRetryReader(ctx, nil)
	defer body.Close()
	return safe(l.fill(body, n))
}

// hand hands over the lines that l has, and moves the position behind them.
func (b *blobs) hand(ctx context.Context, it item, l *lines, last bool) error {
	before := l.start
	for {
		at := l.start
		text, length, ok := l.line(last)
		if !ok {
			break
		}
		r := source.Record{
			From: "blob " + b.container + " " + it.name, At: at, Arrived: it.modified, CloudID: fmt.Sprintf("%s@%d", it.name, at),
		}
		var err error
		if length > int64(len(text)) {
			r.Text = text[:min(len(text), schemas.MaxDeadBytes)]
			cause := fault.Permanent(record.ReasonTooLarge, fmt.Errorf("a line of %d bytes: at most %d are read", length, maxLine))
			err = b.sink.Refuse(ctx, r, length, cause, nil)
		} else if text = bytes.TrimSpace(text); len(text) > 0 {
			err = b.put(ctx, b.sink, b.label, r, text)
		}
		if err != nil {
			return err
		}
	}
	if l.start == before {
		return nil
	}
	b.at.Blobs[it.name] = blobAt{l.start, it.modified}
	return b.sink.Mark(ctx, b.checkpoint())
}

// lines takes lines out of a text that arrives in pieces. Its memory is one
// piece and one line of at most maxLine.
type lines struct {
	start int64 // offset in the blob of the line that comes next
	buf   []byte
	// long is how much of a line that is too long was left out behind what is
	// in buf.
	long int64
}

// next returns the offset of the byte that must come next.
func (l *lines) next() int64 { return l.start + int64(len(l.buf)) + l.long }

// fill takes n bytes from in.
func (l *lines) fill(in io.Reader, n int64) error {
	before := len(l.buf)
	l.buf = slices.Grow(l.buf, int(n))[:before+int(n)]
	got, err := io.ReadFull(in, l.buf[before:])
	l.buf = l.buf[:before+got]
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("the answer ends early")
	}
	return err
}

// line returns the next line without its end, and its length with it; text is
// only its beginning if that is more than text can be. ok is false if its end
// has not come yet; with last it needs none.
func (l *lines) line(last bool) (text []byte, length int64, ok bool) {
	from := 0
	if l.long > 0 { // what came behind a line that is too long
		from = maxLine
	}
	n := bytes.IndexByte(l.buf[from:], '\n')
	if n < 0 {
		whole := l.long == 0 && len(l.buf) > 0 && (last || complete(l.buf))
		if whole && len(l.buf) <= maxLine {
			text = l.buf
			l.start += int64(len(text))
			l.buf = nil
			return text, int64(len(text)), true
		}
		if len(l.buf) > maxLine {
			l.long += int64(len(l.buf) - maxLine)
			l.buf = l.buf[:maxLine]
		}
		if last && l.long > 0 {
			text, length = l.buf, int64(len(l.buf))+l.long
			l.start += length
			l.buf, l.long = nil, 0
			return text, length, true
		}
		return nil, 0, false
	}
	end := from + n
	text = l.buf[:end]
	length = int64(end) + l.long
	if l.long > 0 || end > maxLine {
		text = l.buf[:maxLine]
	}
	l.start += length + 1
	l.buf, l.long = l.buf[end+1:], 0
	return text, length, true
}

// complete reports whether a line whose end has not come is one whole object.
func complete(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) > 1 && line[0] == '{' && line[len(line)-1] == '}' && extent(string(line)) == len(line)
}
