package torture

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// rotationPeriod is the period of every rotation. It ends before the usual renewal windows of the certificates begin.
const rotationPeriod = time.Hour

// maxRotations is the number of open rotations that the operator knows. The server allows eight.
const maxRotations = 4

// rotationObservations records the rotations that were confirmed to the operator.
type rotationObservations struct {
	mu      sync.Mutex
	started map[int64]string // by ID: the batch
	stopped map[int64]bool   // those that the operator stopped, or that had ended before
}

func (o *rotationObservations) open() []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []int64
	for id := range o.started {
		if !o.stopped[id] {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all
}

// rotate starts a rotation of a batch, or stops one.
func (f *fleet) rotate(ctx context.Context) {
	o := &f.w.rotations
	if open := o.open(); len(open) >= maxRotations || len(open) > 0 && f.random.IntN(2) == 0 {
		id := open[f.random.IntN(len(open))]
		req := &brevetv1.StopRotationRequest{Id: strconv.FormatInt(id, 10), RequestId: newRequestID()}
		err := f.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := brevetv1.NewRotationServiceClient(conn).StopRotation(ctx, req)
			return err
		})
		if err != nil {
			f.w.recordUnexpected("stop a rotation", err)
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.stopped[id] = true
		return
	}
	f.startRotation(ctx, labelled(f.random.IntN(batches))[batchLabel])
}

// startRotation counts the certificates of a batch, and starts a rotation of them. The count changes all the time, so
// that the server may refuse the confirmation.
func (f *fleet) startRotation(ctx context.Context, batch string) {
	req := &brevetv1.StartRotationRequest{
		Selection: &brevetv1.CertificateSelection{Label: &brevetv1.Label{Name: batchLabel, Value: batch}},
		Over:      durationpb.New(rotationPeriod), DryRun: true, RequestId: newRequestID(),
	}
	var started *brevetv1.Rotation
	for range 2 { // first the dry run
		err := f.w.clients.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			resp, err := brevetv1.NewRotationServiceClient(conn).StartRotation(ctx, req)
			started = resp.GetRotation()
			return err
		})
		if err != nil {
			if rule := servertest.RuleOf(err); rule != pki.RuleUnconfirmed && rule != pki.RuleNotFound { // all may be revoked
				f.w.recordUnexpected("start a rotation", err)
			}
			return
		}
		req.DryRun, req.Confirm = false, started.GetAffected()
	}
	id, err := strconv.ParseInt(started.GetId(), 10, 64)
	if err != nil {
		f.w.observed.faultf("a rotation has no valid ID: %v", err)
		return
	}
	o := &f.w.rotations
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.started == nil {
		o.started, o.stopped = map[int64]string{}, map[int64]bool{}
	}
	if _, twice := o.started[id]; twice {
		f.w.observed.faultf("two rotations have the ID %d", id)
	}
	o.started[id] = batch
}

// A rotationRecord is a rotation on record or in the log.
type rotationRecord struct {
	batch          string
	mark, affected int64
	period, start  int64 // in milliseconds
	ended, stopped bool
}

func (s *snapshot) readRotations(tx *sql.Tx) error {
	return query(tx, `SELECT id, coalesce(label_value, ''), mark, affected, period, started_at, ended_at IS NOT NULL, stopped FROM rotations`,
		func(scan func(...any) error) error {
			var id int64
			var r rotationRecord
			err := scan(&id, &r.batch, &r.mark, &r.affected, &r.period, &r.start, &r.ended, &r.stopped)
			s.rotations[id] = r
			return err
		})
}

// readRotation records a rotation of the log.
func (a *auditor) readRotation(e *brevetv1.LogEntry) {
	if r := e.GetStartedRotation(); r != nil {
		if _, twice := a.logged[r.GetId()]; twice {
			a.faultf("the log has the start of rotation %d twice", r.GetId())
		}
		a.logged[r.GetId()] = rotationRecord{
			batch: r.GetSelection().GetLabel().GetValue(), mark: r.GetMark(), affected: r.GetAffected(), period: r.GetOver(), start: e.GetTime(),
		}
	}
	if r := e.GetEndedRotation(); r != nil {
		logged, ok := a.logged[r.GetId()]
		if !ok || logged.ended {
			a.faultf("the log has an end of rotation %d, which is not open", r.GetId())
		}
		logged.ended, logged.stopped = true, e.GetAction() == brevetv1.Action_ACTION_ROTATION_STOPPED
		a.logged[r.GetId()] = logged
	}
}

// checkRotations compares the rotations on record with the log, and with those that were confirmed to the operator.
func (a *auditor) checkRotations(o *rotationObservations) {
	for id := range a.rotations {
		if _, ok := a.logged[id]; !ok {
			a.faultf("rotation %d is on record, but not in the log", id)
		}
	}
	for id, logged := range a.logged {
		if r := a.rotations[id]; r != logged {
			a.faultf("rotation %d is on record as %+v, and in the log as %+v", id, r, logged)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, batch := range o.started {
		if r, ok := a.rotations[id]; !ok || r.batch != batch {
			a.faultf("rotation %d of batch %s was started, but is on record as %+v", id, batch, r)
		}
	}
	for id := range o.stopped {
		if !a.rotations[id].ended {
			a.faultf("rotation %d was stopped, but is open", id)
		}
	}
}

// checkRenewalWindows requests the renewal windows of some certificates. Those of an open rotation must be in its
// period, those of revoked certificates in the past, and others as usual. The server must be idle. It activates
// rotations some time after its start, and changes of the rotations restart the check.
func (tt *crashTest) checkRenewalWindows(s *snapshot) []string {
	var faults []string
	for end := time.Now().Add(tt.idleTimeout); ; time.Sleep(50 * time.Millisecond) {
		if faults = tt.windowFaults(s); len(faults) == 0 || time.Now().After(end) {
			return faults
		}
		if next, err := tt.read(tt.dir); err == nil { // a rotation that has nothing to renew completes by itself
			s = next
		}
	}
}

func (tt *crashTest) windowFaults(s *snapshot) (faults []string) {
	checked := map[string]int{}
	for _, r := range slices.Backward(s.rows) {
		if r.der == nil || r.state == hold || r.state == good && r.nextKey != 0 {
			continue
		}
		rotation := s.rotationOf(r)
		kind := fmt.Sprintf("%d %d", r.state, rotation.start)
		if checked[kind]++; checked[kind] > 3 {
			continue
		}
		c, err := parseCertificate(r.der)
		if err != nil {
			return append(faults, err.Error())
		}
		start, end, err := tt.renewalWindow(c)
		usual := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
		first, last := time.UnixMilli(rotation.start).Truncate(time.Second), time.UnixMilli(rotation.start+rotation.period)
		var wrong string
		switch {
		case err != nil:
			wrong = err.Error()
		case r.state == revoked && end.After(time.Now()):
			wrong = "the certificate is revoked"
		case r.state == good && rotation.start != 0 && (end.After(last) || start.Before(first)):
			wrong = fmt.Sprintf("it is outside its rotation from %s to %s", first, last)
		case r.state == good && rotation.start == 0 && start.Before(usual):
			wrong = "the certificate is in no rotation"
		}
		if wrong != "" {
			faults = append(faults, fmt.Sprintf("certificate %s has the renewal window %s to %s, but %s", abbreviate(r.serial), start, end, wrong))
		}
	}
	return faults
}

// rotationOf returns the first open rotation that a certificate is a member of. It returns the zero value if there is
// none.
func (s *snapshot) rotationOf(r row) (first rotationRecord) {
	for _, rotation := range s.rotations {
		member := !rotation.ended && rotation.batch != "" && s.labels[r.identity] == rotation.batch && int64(r.id) <= rotation.mark
		if member && (first.start == 0 || rotation.start < first.start) {
			first = rotation
		}
	}
	return first
}

// renewalWindow requests the renewal window of a certificate (RFC 9773).
func (w *instance) renewalWindow(c *x509.Certificate) (start, end time.Time, err error) {
	serial := c.SerialNumber.Bytes()
	if serial[0]&0x80 != 0 {
		serial = append([]byte{0}, serial...)
	}
	url := httpsURL + "/acme/renewal-info/" + base64.RawURLEncoding.EncodeToString(c.AuthorityKeyId) + "." + base64.RawURLEncoding.EncodeToString(serial)
	client := &http.Client{Transport: w.acme.transport, Timeout: callTimeout}
	resp, err := client.Get(url)
	if err != nil {
		return start, end, err
	}
	defer func() { _ = resp.Body.Close() }() // read only
	var info struct {
		SuggestedWindow struct{ Start, End time.Time }
	}
	if resp.StatusCode != http.StatusOK {
		return start, end, fmt.Errorf("%s", resp.Status)
	}
	err = json.NewDecoder(resp.Body).Decode(&info)
	return info.SuggestedWindow.Start, info.SuggestedWindow.End, err
}
