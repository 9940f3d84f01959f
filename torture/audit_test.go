package torture

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"google.golang.org/protobuf/proto"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// States of the store's certificates.
const (
	good    = 1
	hold    = 2
	revoked = 3
)

func parseCertificate(der []byte) (*x509.Certificate, error) { return x509.ParseCertificate(der) }

// atRest waits until a server that is asked nothing has nothing left to do: no intent is open, and the whole log is
// sequenced and archived. What never comes to that is a fault.
func (w *world) atRest(dir string, wait time.Duration) (*snapshot, []string) {
	for end := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		s, err := readFiles(dir)
		var open string
		switch {
		case err != nil:
			return nil, []string{"the files cannot be read: " + err.Error()}
		case s.pending > 0:
			open = fmt.Sprintf("%d intents are never settled", s.pending)
		case s.open > 0:
			open = fmt.Sprintf("the records of %d sets never follow", s.open)
		case len(s.archive) < len(s.log):
			open = fmt.Sprintf("the archive ends at %d, and the log at %d", len(s.archive), len(s.log))
		default:
			return s, nil
		}
		if time.Now().After(end) {
			return s, []string{open}
		}
	}
}

// auditor holds what files say against what clients, operators and the witness know.
type auditor struct {
	*snapshot
	faults  []string
	records map[string]row    // by serial number
	issued  map[string][]byte // by serial number: the fingerprint that the log has
	dropped map[string]bool   // serial numbers that the log calls abandoned
	states  map[string]int    // of certificates, as the log's newest change has it
	tokens  map[string]int    // how many certificates the log has for each
	bySet   map[string]int    // serial numbers: the set that revoked each
	ended   map[string]int    // serial numbers: how often each was revoked, but for an upgrade to keyCompromise
}

func (a *auditor) faultf(format string, args ...any) {
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

// audit returns what is wrong. Nothing else may go on.
func (w *world) audit(s *snapshot, before *snapshot) []string {
	a := &auditor{
		snapshot: s, records: map[string]row{}, issued: map[string][]byte{}, dropped: map[string]bool{}, states: map[string]int{}, tokens: map[string]int{},
		bySet: map[string]int{}, ended: map[string]int{},
	}
	for _, r := range s.rows {
		if _, twice := a.records[r.serial]; twice {
			a.faultf("the serial number %s is on record twice", r.serial)
		}
		a.records[r.serial] = r
	}
	a.readEntries()
	a.checkLog()
	a.checkRecords()
	a.checkSets()
	a.checkBook(w.book)
	a.checkWitness(w.witness)
	if before != nil {
		a.checkHistory(before)
	}
	return a.faults
}

// readEntries takes from the log what it says of certificates and tokens.
func (a *auditor) readEntries() {
	versions := map[string]int64{}
	for i, l := range a.log {
		var e brevetv1.LogEntry
		if err := proto.Unmarshal(l.entry, &e); err != nil {
			a.faultf("entry %d of the log does not parse: %v", i+1, err)
			continue
		}
		for _, c := range e.GetChanges() {
			serial := fmt.Sprintf("%X", c.GetSerial())
			version, state := c.GetVersion(), int(c.GetState())
			if version == 0 && state == 0 && len(c.GetFingerprint()) == sha256.Size { // issued just now
				version, state = 1, good
			}
			if _, twice := a.issued[serial]; (twice || a.dropped[serial]) && version == 1 {
				a.faultf("the log has the serial number %s twice", serial)
			}
			switch {
			case e.GetAction() == brevetv1.Action_ACTION_CERTIFICATE_ISSUED && version == 1: // and not what it supersedes
				a.issued[serial] = c.GetFingerprint()
			case e.GetAction() == brevetv1.Action_ACTION_CERTIFICATE_ABANDONED:
				a.dropped[serial] = true
			}
			a.readRevocation(&e, serial, state, c.GetReason())
			if version > versions[serial] {
				versions[serial], a.states[serial] = version, state
			}
		}
		if token := e.GetFacts()["token"]; token != "" && e.GetAction() == brevetv1.Action_ACTION_CERTIFICATE_ISSUED {
			if a.tokens[token]++; a.tokens[token] > 1 {
				a.faultf("the token %s was spent %d times", short(token), a.tokens[token])
			}
		}
	}
}

// checkLog compares the store's log with the archive.
func (a *auditor) checkLog() {
	if len(a.archive) > len(a.log) {
		a.faultf("the archive has %d entries, and the store %d", len(a.archive), len(a.log))
	}
	for i := range min(len(a.log), len(a.archive)) {
		if !bytes.Equal(a.log[i].entry, a.archive[i].entry) || a.log[i].chain != nil && !bytes.Equal(a.log[i].chain, a.archive[i].chain) {
			a.faultf("entry %d is not the same in the store and the archive", i+1)
		}
	}
}

// checkRecords compares the inventory with the log, both ways.
func (a *auditor) checkRecords() {
	for serial, r := range a.records {
		fingerprint := sha256.Sum256(r.der)
		switch {
		case r.identity != "" && !bytes.Equal(a.issued[serial], fingerprint[:]):
			a.faultf("certificate %s is on record, and the log has not issued it", short(serial))
		case r.identity == "" && (!a.dropped[serial] || r.state != revoked):
			a.faultf("certificate %s was never released, and is not revoked or not in the log", short(serial))
		case r.state != a.states[serial]:
			a.faultf("certificate %s is in state %d, and in %d by the log", short(serial), r.state, a.states[serial])
		}
	}
	for serial := range a.issued {
		if a.records[serial].identity == "" {
			a.faultf("the log has issued certificate %s, which is not on record", short(serial))
		}
	}
}

// checkBook looks for everything that somebody holds or was promised.
func (a *auditor) checkBook(b *book) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.faults = append(a.faults, b.faults...)
	for serial, c := range b.held {
		if r := a.records[serial]; !bytes.Equal(r.der, c.Raw) || r.identity != c.URIs[0].String() {
			a.faultf("a client holds certificate %s, which is not on record", short(serial))
		}
		if _, ok := a.issued[serial]; !ok {
			a.faultf("a client holds certificate %s, which is not in the log", short(serial))
		}
	}
	for serial := range b.revoked {
		if a.records[serial].state != revoked {
			a.faultf("certificate %s was revoked, and is in state %d", short(serial), a.records[serial].state)
		}
	}
	for identity, state := range b.states {
		if suspended := a.identities[identity] == 3; suspended != (state == "suspended") {
			a.faultf("%s was %s last, and is in state %d", identity, state, a.identities[identity])
		}
	}
}

// checkWitness accounts for every signature: by a certificate, or by a revoked record that was never released.
func (a *auditor) checkWitness(w *witness) {
	accounted := map[string]bool{}
	for _, r := range a.rows {
		accounted[r.digest] = r.identity != "" || r.state == revoked
	}
	certificates, crls := w.seen()
	for _, digest := range certificates {
		if !accounted[digest] {
			a.faultf("the token signed %s, which is neither a certificate nor a revoked record", short(digest))
		}
	}
	if a.numbers.IsInt64() && a.numbers.Int64()*(2*partitions+1) < int64(crls) {
		a.faultf("the token signed %d CRLs, and %v numbers are taken", crls, a.numbers)
	}
}

// checkHistory looks for what was there before.
func (a *auditor) checkHistory(before *snapshot) {
	for _, was := range before.rows {
		is := a.records[was.serial]
		if !bytes.Equal(is.der, was.der) || is.digest != was.digest || was.state == revoked && is.state != revoked {
			a.faultf("certificate %s was on record in another way before", short(was.serial))
		}
	}
	for i, was := range before.archive {
		if i >= len(a.archive) || !bytes.Equal(was.entry, a.archive[i].entry) {
			a.faultf("entry %d of the archive was another one before", i+1)
			return
		}
	}
}

// checkOCSP asks the server about some certificates, half of them revoked, and holds its answers against the store.
func (w *world) checkOCSP(t *testing.T, p *process, s *snapshot) (faults []string) {
	t.Helper()
	asked := map[int]int{}
	for _, r := range slices.Backward(s.rows) {
		if r.der == nil || asked[r.state] >= 3 {
			continue
		}
		asked[r.state]++
		if got, err := w.ocsp(p, parse(t, r.der)); err != nil || got != r.state {
			faults = append(faults, fmt.Sprintf("OCSP says of certificate %s, which is in state %d: %d, %v", short(r.serial), r.state, got, err))
		}
	}
	return faults
}

// ocsp returns a certificate's state as the responder has it.
func (w *world) ocsp(p *process, c *x509.Certificate) (int, error) {
	req, err := ocsp.CreateRequest(c, w.issuing, nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Timeout: callPatience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+p.http+"/ocsp", "application/ocsp-request", bytes.NewReader(req))
	if err != nil {
		return 0, err
	}
	der, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // it was read
	if err != nil {
		return 0, err
	}
	answer, err := ocsp.ParseResponseForCert(der, c, w.issuing)
	switch {
	case err != nil:
		return 0, err
	case answer.Status == ocsp.Good:
		return good, nil
	case answer.Status == ocsp.Revoked && answer.RevocationReason == ocsp.CertificateHold:
		return hold, nil
	case answer.Status == ocsp.Revoked:
		return revoked, nil
	default:
		return 0, fmt.Errorf("status %d", answer.Status)
	}
}

// report is faults for a person: the first of them, and how many there are.
func report(faults []string) string {
	shown := faults[:min(len(faults), 12)]
	return fmt.Sprintf("%d faults:\n  %s", len(faults), strings.Join(shown, "\n  "))
}
