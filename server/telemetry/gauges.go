package telemetry

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/revocation"
	"github.com/brevet-pki/brevet/revocation/rotation"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/translog"
)

// A Part holds the gauges of one part of the server. They are computed at scrape time.
type Part struct {
	descs   []*prometheus.Desc
	collect func(ctx context.Context, s *scrape)
}

// Gauges is a [prometheus.Collector] for the gauges of all parts.
type Gauges struct {
	parts    []Part
	failures *prometheus.Desc
}

// NewGauges returns the gauges of the given parts, computed in this order.
func NewGauges(parts ...Part) *Gauges {
	return &Gauges{parts: parts, failures: gauge("brevet_scrape_errors", "Parts of this response that could not be read.")}
}

// Describe implements prometheus.Collector.
func (g *Gauges) Describe(ch chan<- *prometheus.Desc) {
	for _, p := range g.parts {
		for _, d := range p.descs {
			ch <- d
		}
	}
	ch <- g.failures
}

// Collect implements prometheus.Collector.
func (g *Gauges) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	s := &scrape{ch: ch}
	for _, p := range g.parts {
		p.collect(ctx, s)
	}
	s.set(g.failures, float64(s.failures))
}

// A scrape is one collection of all gauges.
type scrape struct {
	ch       chan<- prometheus.Metric
	failures int // parts that could not be read
}

func (s *scrape) set(d *prometheus.Desc, v float64, labels ...string) {
	s.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s *scrape) setBool(d *prometheus.Desc, b bool, labels ...string) {
	v := 0.0
	if b {
		v = 1
	}
	s.set(d, v, labels...)
}

func (s *scrape) setTime(d *prometheus.Desc, t time.Time, labels ...string) {
	s.set(d, float64(t.UnixMilli())/1000, labels...)
}

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// OfUnsignedCRLs returns a gauge for each issuing CA.
func OfUnsignedCRLs(all []*x509.Certificate, u interface{ Unsigned() []*x509.Certificate }) Part {
	unsigned := gauge("brevet_crl_unsigned", "1 if other servers sign the CRLs of this CA and none of them does so now, else 0.", "name")
	return Part{[]*prometheus.Desc{unsigned}, func(_ context.Context, s *scrape) {
		missing := u.Unsigned()
		for _, c := range all {
			if !ca.IsRoot(c) {
				s.setBool(unsigned, slices.ContainsFunc(missing, c.Equal), nameOfCA(c))
			}
		}
	}}
}

// OfHealth returns a gauge for readiness.
func OfHealth(h *Health) Part {
	ready := gauge("brevet_ready", "1 if /readyz reports ok, else 0.")
	return Part{[]*prometheus.Desc{ready}, func(ctx context.Context, s *scrape) {
		s.setBool(ready, h.Readiness(ctx) == nil)
	}}
}

// OfIssuing returns the gauges of the issuing pipeline.
func OfIssuing(a interface {
	Fenced() bool
	InFlight() int
}) Part {
	fenced := gauge("brevet_fenced", "1 if another process runs under this server's name, else 0.")
	inFlight := gauge("brevet_certificates_in_flight", "Certificates that are being issued, from the first step until they are recorded.")
	return Part{[]*prometheus.Desc{fenced, inFlight}, func(_ context.Context, s *scrape) {
		s.setBool(fenced, a.Fenced())
		s.set(inFlight, float64(a.InFlight()))
	}}
}

// OfHSMs returns the gauges of every HSM.
func (r *Recorder) OfHSMs() Part {
	up := gauge("brevet_hsm_up", "1 if the last signature of the HSM succeeded, for a certificate or a self-test, else 0.", "hsm")
	calls := gauge("brevet_hsm_sessions_in_use", "Calls in progress in the HSM.", "hsm")
	sessions := gauge("brevet_hsm_sessions_limit", "Maximum number of concurrent calls in the HSM.", "hsm")
	failures := gauge("brevet_hsm_consecutive_failures", "Failures of the HSM since its last success.", "hsm")
	return Part{[]*prometheus.Desc{up, calls, sessions, failures}, func(_ context.Context, s *scrape) {
		for _, t := range r.hsms {
			now, most := t.Calls()
			s.setBool(up, !t.failed.Load(), t.Name)
			s.set(calls, float64(now), t.Name)
			s.set(sessions, float64(most), t.Name)
			s.set(failures, float64(t.Failures()), t.Name)
		}
	}}
}

// OfConnections returns a gauge for the maximum number of connections on each of the ports for gRPC, HTTP and HTTPS.
func OfConnections(most int) Part {
	limit := gauge("brevet_connections_limit", "Connections that can be open on each of the ports grpc, http and https.")
	return Part{[]*prometheus.Desc{limit}, func(_ context.Context, s *scrape) { s.set(limit, float64(most)) }}
}

// OfResponder returns the gauges of the responder's synchronization with the store.
func OfResponder(r interface {
	CurrentAt() time.Time
	IsStale() bool
},
) Part {
	current := gauge("brevet_responder_synced_timestamp_seconds", "When the responder was last synchronized with the store, as Unix time.")
	stale := gauge("brevet_stale", "1 if the server has not read for too long what other servers have changed, else 0.")
	return Part{[]*prometheus.Desc{current, stale}, func(_ context.Context, s *scrape) {
		s.setTime(current, r.CurrentAt())
		s.setBool(stale, r.IsStale())
	}}
}

// OfQueues returns the gauges of the queues for calls. The keys of the map are values of the label "queue".
func OfQueues(queues map[string]*admission.Queue) Part {
	working := gauge("brevet_queue_active", "RPCs being handled, by queue.", "queue")
	waiting := gauge("brevet_queue_waiting", "RPCs that wait, by queue.", "queue")
	slots := gauge("brevet_queue_slots", "Maximum number of RPCs being handled, by queue.", "queue")
	refused := gauge("brevet_queue_rejected_total", "RPCs that were rejected because the queue was full, by queue.", "queue")
	return Part{[]*prometheus.Desc{working, waiting, slots, refused}, func(_ context.Context, s *scrape) {
		for name, queue := range queues {
			load := queue.Load()
			s.set(working, float64(load.Working), name)
			s.set(waiting, float64(load.Waiting), name)
			s.set(slots, float64(queue.Slots()), name)
			s.ch <- prometheus.MustNewConstMetric(refused, prometheus.CounterValue, float64(load.Refused), name)
		}
	}}
}

// OfBulkIssuance returns the gauges of bulk issuance.
func OfBulkIssuance(api interface{ IssueRequests() (active, limit int) }) Part {
	inProgress := gauge("brevet_bulk_issuance_active", "Requests of bulk issuance that are being handled.")
	most := gauge("brevet_bulk_issuance_limit", "Maximum number of requests of bulk issuance that are handled at once.")
	return Part{[]*prometheus.Desc{inProgress, most}, func(_ context.Context, s *scrape) {
		active, limit := api.IssueRequests()
		s.set(inProgress, float64(active))
		s.set(most, float64(limit))
	}}
}

// OfBulkRevocations returns the gauges of bulk revocations that are in effect but not yet applied to all records and
// CRLs. Until the server has counted the certificates of a bulk revocation, it counts none of them as pending.
func OfBulkRevocations(records interface {
	OpenBulk(ctx context.Context) ([]revocation.BulkRevocation, error)
}) Part {
	sets := gauge("brevet_bulk_revocations_open", "Bulk revocations that are not yet applied to all records.")
	members := gauge("brevet_bulk_revocation_certificates",
		"Certificates of open bulk revocations, by the state of their records: applied or pending.", "state")
	return Part{[]*prometheus.Desc{sets, members}, func(ctx context.Context, s *scrape) {
		open, err := records.OpenBulk(ctx)
		if err != nil {
			s.failures++
			return
		}
		var applied, pending int
		for _, b := range open {
			applied += b.Applied
			pending += max(0, b.Total-b.Applied)
		}
		s.set(sets, float64(len(open)))
		s.set(members, float64(applied), "applied")
		s.set(members, float64(pending), "pending")
	}}
}

// OfRotations returns the gauges of open rotations.
func OfRotations(rotations interface{ Load() rotation.Load }) Part {
	open := gauge("brevet_rotations_open", "Rotations whose certificates are being renewed.")
	members := gauge("brevet_rotation_certificates",
		"Certificates of open rotations, by what became of them: renewed, due, or gone (expired or revoked).", "state")
	return Part{[]*prometheus.Desc{open, members}, func(_ context.Context, s *scrape) {
		l := rotations.Load()
		s.set(open, float64(l.Open))
		s.set(members, float64(l.Renewed), "renewed")
		s.set(members, float64(l.Due), "due")
		s.set(members, float64(l.Gone), "gone")
	}}
}

// OfValidations returns the gauges of validations of ACME challenges.
func OfValidations(door interface{ Validations() (active, waiting int) }) Part {
	running := gauge("brevet_acme_validations_active", "ACME challenges that are being validated.")
	queued := gauge("brevet_acme_validations_waiting", "ACME challenges that wait to be validated.")
	return Part{[]*prometheus.Desc{running, queued}, func(_ context.Context, s *scrape) {
		active, waiting := door.Validations()
		s.set(running, float64(active))
		s.set(queued, float64(waiting))
	}}
}

// LogRecords returns how many log entries are written, and how many of these are sequenced. It is safe for concurrent
// use.
type LogRecords interface {
	Head(ctx context.Context) (translog.Head, error)
	Written(ctx context.Context) (uint64, error)
}

// OfLog returns the gauges of the log. It reads the number of archived entries first and that of written entries last,
// so that a scrape never counts more entries as archived than as written.
func OfLog(archive interface{ Head() translog.Head }, records LogRecords) Part {
	entries := gauge("brevet_log_entries", "Entries of the log, by the states that they have reached: written, sequenced, archived.", "state")
	return Part{[]*prometheus.Desc{entries}, func(ctx context.Context, s *scrape) {
		s.set(entries, float64(archive.Head().Size), "archived")
		if head, err := records.Head(ctx); err != nil {
			s.failures++
		} else {
			s.set(entries, float64(head.Size), "sequenced")
		}
		if written, err := records.Written(ctx); err != nil {
			s.failures++
		} else {
			s.set(entries, float64(written), "written")
		}
	}}
}

// OfCopy returns the gauges of the second copy of the log's archive.
func OfCopy(c interface {
	Failure() error
	Size() uint64
}) Part {
	up := gauge("brevet_archive_copy_up", "1 if the last attempt to write the second copy of the log's archive succeeded, else 0.")
	entries := gauge("brevet_archive_copy_entries", "Entries of the log that the second copy of its archive has.")
	return Part{[]*prometheus.Desc{up, entries}, func(_ context.Context, s *scrape) {
		s.setBool(up, c.Failure() == nil)
		s.set(entries, float64(c.Size()))
	}}
}

// OfDisk returns the gauges of the server's files and their disk.
func OfDisk(d Disk) Part {
	files := gauge("brevet_file_bytes", "Sizes of the server's files: store, wal or archive.", "file")
	room := gauge("brevet_disk_free_bytes", "Free space on the disk of the store; 0 if the store cannot be written.")
	return Part{[]*prometheus.Desc{files, room}, func(_ context.Context, s *scrape) {
		for file, size := range d.Sizes() {
			s.set(files, float64(size), file)
		}
		free, err := d.Free()
		if err != nil {
			free = 0
		}
		s.set(room, float64(free))
	}}
}

// maxWaiting is the maximum number of expired records that a scrape counts.
const maxWaiting = 100_000

// OfRetention returns the gauges of expired records.
func OfRetention(records interface {
	Waiting(ctx context.Context, before time.Time, most int) (int, error)
}, sweeper interface {
	Before() time.Time
	LastKnown() time.Time
}) Part {
	overdue := gauge("brevet_expired_records",
		"Expired certificates that the next sweep removes from the store, counted up to 100000.")
	swept := gauge("brevet_retention_last_run_timestamp_seconds", "When the last sweep of expired records ended, or another server was last known to lead and so to sweep, as Unix time; 0 before.")
	return Part{[]*prometheus.Desc{overdue, swept}, func(ctx context.Context, s *scrape) {
		if waiting, err := records.Waiting(ctx, sweeper.Before(), maxWaiting); err != nil {
			s.failures++
		} else {
			s.set(overdue, float64(waiting))
		}
		if last := sweeper.LastKnown(); last.IsZero() {
			s.set(swept, 0)
		} else {
			s.setTime(swept, last)
		}
	}}
}
