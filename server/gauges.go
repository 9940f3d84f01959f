package server

import (
	"context"
	"crypto/x509"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/revocation/crl"
)

// gauges are what is read when somebody asks.
type gauges struct {
	ready, fenced, inFlight, tokenUp, tokenCalls, tokenSessions, tokenFailures, connections,
	working, waiting, slots, away, orders, ordersLimit, expiry, begin, current, crl, crlEntries, crlBytes, crlFailing,
	sets, members, log, files, free, overdue, swept, unread *prometheus.Desc
}

func newGauges() gauges {
	g := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return gauges{
		ready:         g("brevet_ready", "1 where /readyz says ok, else 0."),
		fenced:        g("brevet_fenced", "1 where another process has taken over the store, else 0."),
		inFlight:      g("brevet_certificates_in_flight", "Certificates between draft and release."),
		tokenUp:       g("brevet_token_up", "1 where the token signed when it was last asked, for a certificate or to prove itself, else 0.", "token"),
		tokenCalls:    g("brevet_token_calls", "Calls that are in the token.", "token"),
		tokenSessions: g("brevet_token_sessions", "Calls that can be in the token at once.", "token"),
		tokenFailures: g("brevet_token_failures", "Failures of the token since it last worked.", "token"),
		connections:   g("brevet_connections_limit", "Connections that can be open on each of the ports grpc and http."),
		working:       g("brevet_lane_working", "Calls at work, by lane: what kind of work they are.", "lane"),
		waiting:       g("brevet_lane_waiting", "Calls that wait for their turn, by lane.", "lane"),
		slots:         g("brevet_lane_slots", "Calls that can be at work at once, by lane.", "lane"),
		away:          g("brevet_lane_refused_total", "Calls that were turned away because the lane was full, by lane.", "lane"),
		orders:        g("brevet_orders_working", "Orders of streams that are being carried out."),
		ordersLimit:   g("brevet_orders_limit", "Orders of all streams that can be carried out at once."),
		expiry: g("brevet_expiry_timestamp_seconds",
			"When what the CA lives on ends, as Unix time: certificates of the issuing CA, of its root and those between, of "+
				"earlier issuing CAs; CRLs; the server's certificate; OCSP delegates (va).", "kind", "name"),
		begin: g("brevet_not_before_timestamp_seconds",
			"When the certificates among these began, as Unix time: kind and name are those of their ends.", "kind", "name"),
		current:    g("brevet_statuses_current_timestamp_seconds", "When the responder last knew every status, as Unix time."),
		crl:        g("brevet_crl_this_update_timestamp_seconds", "When the published CRL was signed, as Unix time.", "name"),
		crlEntries: g("brevet_crl_entries", "Certificates in the published CRL.", "name"),
		crlBytes:   g("brevet_crl_bytes", "Size of the published CRL.", "name"),
		crlFailing: g("brevet_crl_directory_failing",
			"1 where the last try to bring CRLs to this further directory failed, and it may have old ones, else 0.", "directory"),
		sets: g("brevet_revocation_sets_open", "Orders to revoke sets of certificates whose records do not all follow yet."),
		members: g("brevet_revocation_set_certificates",
			"Certificates of these sets, by what their own records do: they have followed, or are waiting to.", "records"),
		log:   g("brevet_log_entries", "Entries of the log, by how far they have come: written, sequenced or archived.", "in"),
		files: g("brevet_file_bytes", "Sizes of the server's files: store, wal or archive.", "file"),
		free:  g("brevet_disk_free_bytes", "Room on the disk of the store; 0 where it cannot be written."),
		overdue: g("brevet_records_waiting",
			"Certificates on record that ended before the retention, and leave with the next sweep; counted up to 100000."),
		swept:  g("brevet_last_sweep_timestamp_seconds", "When expired records last left the store, as Unix time; 0 before the first time."),
		unread: g("brevet_scrape_failures", "Parts of this answer that could not be read."),
	}
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	g := s.gauges
	for _, d := range []*prometheus.Desc{
		g.ready, g.fenced, g.inFlight, g.tokenUp, g.tokenCalls, g.tokenSessions, g.tokenFailures, g.connections,
		g.working, g.waiting, g.slots, g.away, g.orders, g.ordersLimit, g.expiry, g.begin, g.current, g.crl, g.crlEntries, g.crlBytes, g.crlFailing,
		g.sets, g.members, g.log, g.files, g.free, g.overdue, g.swept, g.unread,
	} {
		ch <- d
	}
}

// A reading is one answer to who collects.
type reading struct {
	*Server
	ch       chan<- prometheus.Metric
	failures int
}

func (r *reading) gauge(d *prometheus.Desc, v float64, labels ...string) {
	r.ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (r *reading) at(d *prometheus.Desc, t time.Time, labels ...string) {
	r.gauge(d, float64(t.UnixMilli())/1000, labels...)
}

// tokens reads the state of every token.
func (r *reading) tokens() {
	for _, t := range r.Server.tokens {
		calls, sessions := t.Calls()
		r.gauge(r.gauges.tokenUp, bit(!t.failed.Load()), t.Name)
		r.gauge(r.gauges.tokenCalls, float64(calls), t.Name)
		r.gauge(r.gauges.tokenSessions, float64(sessions), t.Name)
		r.gauge(r.gauges.tokenFailures, float64(t.Failures()), t.Name)
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	r, g := &reading{Server: s, ch: ch}, s.gauges
	r.gauge(g.ready, bit(s.readiness(ctx) == nil))
	r.gauge(g.fenced, bit(s.authority.Fenced()))
	r.gauge(g.inFlight, float64(s.authority.InFlight()))
	r.tokens()
	r.gauge(g.connections, maxConnections)
	r.at(g.current, s.responder.CurrentAt())
	r.lanes()
	r.gauge(g.orders, float64(len(s.bulk.places)))
	r.gauge(g.ordersLimit, float64(cap(s.bulk.places)))
	r.expiries(ctx)
	r.sets(ctx)
	for directory, failure := range r.crlUpdater.Mirrors() {
		r.gauge(g.crlFailing, bit(failure != nil), directory)
	}
	r.backlog(ctx)
	r.disk()
	r.retention(ctx)
	r.gauge(g.unread, float64(r.failures))
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// lanes are those that calls wait in.
func (r *reading) lanes() {
	g := r.gauges
	for w, lane := range r.intake.lanes {
		load := lane.Load()
		r.gauge(g.working, float64(load.Working), string(w))
		r.gauge(g.waiting, float64(load.Waiting), string(w))
		r.gauge(g.slots, float64(lane.Slots()), string(w))
		r.ch <- prometheus.MustNewConstMetric(g.away, prometheus.CounterValue, float64(load.Refused), string(w))
	}
}

// expiries are of everything that the CA lives on. An earlier CA that has expired is over, and so is its CRL.
func (r *reading) expiries(ctx context.Context) {
	names, now := map[pki.IssuerID]string{}, r.config.Clock()
	for _, c := range r.config.Authorities {
		kind, id := r.kindOf(c), pki.IssuerOf(c)
		if kind == "earlier" && now.After(c.NotAfter) {
			continue
		}
		names[id] = c.Subject.String() + " " + id.Short()
		r.certificate(c, kind, names[id])
	}
	for kind, certs := range r.ownCertificates() {
		for _, c := range certs {
			r.certificate(c, kind, pathOf(c))
		}
	}
	r.crls(ctx, names)
}

func (r *reading) certificate(c *x509.Certificate, kind, name string) {
	r.at(r.gauges.expiry, c.NotAfter, kind, name)
	r.at(r.gauges.begin, c.NotBefore, kind, name)
}

// crls are the published ones of CAs that have a name here.
func (r *reading) crls(ctx context.Context, names map[pki.IssuerID]string) {
	crls, err := r.config.Stores.CRLs.CRLs(ctx)
	if err != nil {
		r.failures++
	}
	current := map[crl.Scope]bool{}
	for _, scope := range r.crlUpdater.Scopes() {
		current[scope] = true
	}
	for _, c := range crls {
		if !current[c.Scope()] {
			continue // of a CA that is not installed, or a delta that no certificate names any more
		}
		if name, living := names[c.Issuer]; living {
			if c.Partition != 0 {
				name += " " + strings.TrimSuffix(path.Base(c.Scope().Path()), ".crl")
			}
			r.at(r.gauges.expiry, c.NextUpdate, "crl", name)
			r.at(r.gauges.crl, c.ThisUpdate, name)
			r.gauge(r.gauges.crlEntries, float64(c.Entries), name)
			r.gauge(r.gauges.crlBytes, float64(c.Size), name)
		}
	}
}

// sets are those in effect whose records, and so the CRLs, do not say so yet. What is not counted yet waits uncounted.
func (r *reading) sets(ctx context.Context) {
	open, err := r.config.Stores.Revocation.OpenSets(ctx)
	if err != nil {
		r.failures++
		return
	}
	var followed, waiting int
	for _, s := range open {
		followed += s.Followed
		waiting += max(0, s.Total-s.Followed)
	}
	r.gauge(r.gauges.sets, float64(len(open)))
	r.gauge(r.gauges.members, float64(followed), "followed")
	r.gauge(r.gauges.members, float64(waiting), "waiting")
}

// kindOf says what a CA is to the one that issues now.
func (s *Server) kindOf(c *x509.Certificate) string {
	current := s.authority.Current()
	switch {
	case c.Equal(current.Certificate):
		return "issuing"
	case c.Equal(current.Root):
		return "root"
	case slices.ContainsFunc(current.Chain, c.Equal):
		return "intermediate"
	default:
		return "earlier"
	}
}

// backlog is read from its far end, so that no entry seems to be archived before it is written.
func (r *reading) backlog(ctx context.Context) {
	r.gauge(r.gauges.log, float64(r.config.Archive.Head().Size), "archived")
	if head, err := r.config.Stores.Log.Head(ctx); err != nil {
		r.failures++
	} else {
		r.gauge(r.gauges.log, float64(head.Size), "sequenced")
	}
	if written, err := r.config.Stores.Log.Written(ctx); err != nil {
		r.failures++
	} else {
		r.gauge(r.gauges.log, float64(written), "written")
	}
}

// maxWaiting bounds what counting costs whoever collects.
const maxWaiting = 100_000

func (r *reading) retention(ctx context.Context) {
	if waiting, err := r.config.Stores.Retention.Waiting(ctx, r.sweeper.Before(), maxWaiting); err != nil {
		r.failures++
	} else {
		r.gauge(r.gauges.overdue, float64(waiting))
	}
	if last := r.sweeper.Last().Ended; last.IsZero() {
		r.gauge(r.gauges.swept, 0)
	} else {
		r.at(r.gauges.swept, last)
	}
}

func (r *reading) disk() {
	for file, size := range r.config.Disk.Sizes() {
		r.gauge(r.gauges.files, float64(size), file)
	}
	free, err := r.config.Disk.Free()
	if err != nil {
		free = 0
	}
	r.gauge(r.gauges.free, float64(free))
}

func (s *Server) ownCertificates() map[string][]*x509.Certificate {
	own := map[string][]*x509.Certificate{}
	if p := s.own.Pair(); p != nil {
		own["server"] = append(own["server"], p.Certificate)
	}
	for _, d := range s.delegates {
		if p := d.Pair(); p != nil {
			own["va"] = append(own["va"], p.Certificate)
		}
	}
	return own
}

func pathOf(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return c.URIs[0].String()
}
