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

// waitIdle waits until an idle server has finished its work. Then no intent and no bulk revocation is open, and the
// whole log is archived. After wait it returns a fault.
func (w *instance) waitIdle(dir string, wait time.Duration) (*snapshot, []string) {
	for end := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		s, err := w.read(dir)
		var open string
		switch {
		case err != nil:
			return nil, []string{"the files cannot be read: " + err.Error()}
		case s.intents > 0:
			open = fmt.Sprintf("%d intents stay open", s.intents)
		case s.openBulks > 0:
			open = fmt.Sprintf("%d bulk revocations stay incomplete", s.openBulks)
		case len(s.archive) < len(s.log):
			open = fmt.Sprintf("the archive ends at entry %d, the log at %d", len(s.archive), len(s.log))
		default:
			return s, nil
		}
		if time.Now().After(end) {
			return s, []string{open}
		}
	}
}

// An auditor compares the files with the records of clients, operators and the signatureLog.
type auditor struct {
	*snapshot
	faults      []string
	records     map[string]row           // by serial number
	issued      map[string][]byte        // by serial number: the fingerprint in the log
	abandoned   map[string]bool          // serial numbers that the log reports as abandoned
	states      map[string]int           // by serial number: the state by the newest change in the log
	tokenUses   map[string]int           // by token: the number of certificates in the log
	logged      map[int64]rotationRecord // by ID: the rotations in the log
	byBulk      map[string]int           // by serial number: the bulk revocation that revoked it
	revocations map[string]int           // by serial number: how often it was revoked, without changes of the reason to keyCompromise
}

func (a *auditor) faultf(format string, args ...any) {
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

// audit returns the faults in a snapshot. The server must be idle.
func (w *instance) audit(s *snapshot, before *snapshot) []string {
	a := &auditor{
		snapshot: s, records: map[string]row{}, issued: map[string][]byte{}, abandoned: map[string]bool{}, states: map[string]int{}, tokenUses: map[string]int{},
		byBulk: map[string]int{}, revocations: map[string]int{}, logged: map[int64]rotationRecord{},
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
	a.checkBulks()
	a.checkObservations(w.observed)
	a.checkSignatures(w.signatures)
	a.checkACME(w.acme)
	a.checkRotations(&w.rotations)
	if before != nil {
		a.checkHistory(before)
		a.checkACMEHistory(before)
	}
	return a.faults
}

// readEntries collects the changes of certificates and the uses of tokens from the log.
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
			if version == 0 && state == 0 && len(c.GetFingerprint()) == sha256.Size { // issued by this entry
				version, state = 1, good
			}
			if _, twice := a.issued[serial]; (twice || a.abandoned[serial]) && version == 1 {
				a.faultf("the log has the serial number %s twice", serial)
			}
			switch {
			case e.GetAction() == brevetv1.Action_ACTION_CERTIFICATE_ISSUED && version == 1: // not the certificate that it supersedes
				a.issued[serial] = c.GetFingerprint()
			case e.GetAction() == brevetv1.Action_ACTION_CERTIFICATE_ABANDONED:
				a.abandoned[serial] = true
			}
			a.readRevocation(&e, serial, state, c.GetReason())
			if version > versions[serial] {
				versions[serial], a.states[serial] = version, state
			}
		}
		a.readRotation(&e)
		if token := fmt.Sprintf("%x", e.GetIssuedCertificate().GetTokenId()); token != "" {
			if a.tokenUses[token]++; a.tokenUses[token] > 1 {
				a.faultf("the token %s was used %d times", abbreviate(token), a.tokenUses[token])
			}
		}
	}
}

// checkLog compares the store's log with the archive.
func (a *auditor) checkLog() {
	if len(a.archive) > len(a.log) {
		a.faultf("the archive has %d entries, the store only %d", len(a.archive), len(a.log))
	}
	for i := range min(len(a.log), len(a.archive)) {
		if !bytes.Equal(a.log[i].entry, a.archive[i].entry) || a.log[i].chain != nil && !bytes.Equal(a.log[i].chain, a.archive[i].chain) {
			a.faultf("entry %d differs between the store and the archive", i+1)
		}
	}
}

// checkRecords compares the certificates on record with the log, in both directions.
func (a *auditor) checkRecords() {
	for serial, r := range a.records {
		fingerprint := sha256.Sum256(r.der)
		switch {
		case r.identity != "" && !bytes.Equal(a.issued[serial], fingerprint[:]):
			a.faultf("certificate %s is on record, but the log has no issuance of it", abbreviate(serial))
		case r.identity == "" && (!a.abandoned[serial] || r.state != revoked):
			a.faultf("certificate %s was not delivered, but is not revoked or not abandoned in the log", abbreviate(serial))
		case r.state != a.states[serial]:
			a.faultf("certificate %s is in state %d, by the log in %d", abbreviate(serial), r.state, a.states[serial])
		}
	}
	for serial := range a.issued {
		if a.records[serial].identity == "" {
			a.faultf("the log has the issuance of certificate %s, which is not on record", abbreviate(serial))
		}
	}
}

// checkObservations checks that every certificate and every confirmed change that clients observed is on record.
func (a *auditor) checkObservations(b *observations) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a.faults = append(a.faults, b.faults...)
	for serial, c := range b.certificates {
		if r := a.records[serial]; !bytes.Equal(r.der, c.Raw) || len(c.URIs) > 0 && r.identity != identityOf(c) {
			a.faultf("a client holds certificate %s, which is not on record", abbreviate(serial))
		}
		if _, ok := a.issued[serial]; !ok {
			a.faultf("a client holds certificate %s, which is not in the log", abbreviate(serial))
		}
	}
	for serial := range b.revoked {
		if a.records[serial].state != revoked {
			a.faultf("certificate %s was revoked, but is in state %d", abbreviate(serial), a.records[serial].state)
		}
	}
	for identity, state := range b.states {
		if suspended := a.identities[identity] == 3; suspended != (state == "suspended") {
			a.faultf("%s was %s last, but is in state %d", identity, state, a.identities[identity])
		}
	}
}

// checkSignatures checks that every signature belongs to a certificate on record, or to a revoked record of a
// certificate that was not delivered.
func (a *auditor) checkSignatures(w *signatureLog) {
	accounted := map[string]bool{}
	for _, r := range a.rows {
		accounted[r.digest] = r.identity != "" || r.state == revoked
	}
	certificates, _ := w.all()
	for _, digest := range certificates {
		if !accounted[digest] {
			a.faultf("the HSM signed %s, which is neither a certificate nor a revoked record", abbreviate(digest))
		}
	}
	if a.crlNumbers.IsInt64() && a.crlNumbers.Int64()*(2*partitions+1) < int64(a.signedCRLs) {
		a.faultf("the HSM signed %d CRLs, but only %v numbers are taken", a.signedCRLs, a.crlNumbers)
	}
}

// checkHistory checks that no certificate and no archived entry of the previous snapshot is missing or altered.
func (a *auditor) checkHistory(before *snapshot) {
	for _, was := range before.rows {
		is := a.records[was.serial]
		if !bytes.Equal(is.der, was.der) || is.digest != was.digest || was.state == revoked && is.state != revoked {
			a.faultf("certificate %s differs from the previous audit", abbreviate(was.serial))
		}
	}
	for i, was := range before.archive {
		if i >= len(a.archive) || !bytes.Equal(was.entry, a.archive[i].entry) {
			a.faultf("entry %d of the archive differs from the previous audit", i+1)
			return
		}
	}
}

// checkOCSP queries the server about up to three certificates in each state, and compares the responses with the store.
func (w *instance) checkOCSP(t *testing.T, p *process, s *snapshot) (faults []string) {
	t.Helper()
	queried := map[int]int{}
	for _, r := range slices.Backward(s.rows) {
		if r.der == nil || queried[r.state] >= 3 {
			continue
		}
		queried[r.state]++
		if got, err := w.ocsp(p, parse(t, r.der)); err != nil || got != r.state {
			faults = append(faults, fmt.Sprintf("certificate %s is in state %d, by OCSP in %d, error %v", abbreviate(r.serial), r.state, got, err))
		}
	}
	return faults
}

// ocsp returns a certificate's state according to the responder.
func (w *instance) ocsp(p *process, c *x509.Certificate) (int, error) {
	req, err := ocsp.CreateRequest(c, w.issuing, nil)
	if err != nil {
		return 0, err
	}
	client := http.Client{Timeout: callTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+p.http+"/ocsp", "application/ocsp-request", bytes.NewReader(req))
	if err != nil {
		return 0, err
	}
	der, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close() // the body has been read
	if err != nil {
		return 0, err
	}
	status, err := ocsp.ParseResponseForCert(der, c, w.issuing)
	switch {
	case err != nil:
		return 0, err
	case status.Status == ocsp.Good:
		return good, nil
	case status.Status == ocsp.Revoked && status.RevocationReason == ocsp.CertificateHold:
		return hold, nil
	case status.Status == ocsp.Revoked:
		return revoked, nil
	default:
		return 0, fmt.Errorf("status %d", status.Status)
	}
}

// report returns the number of faults and the first of them.
func report(faults []string) string {
	shown := faults[:min(len(faults), 12)]
	return fmt.Sprintf("%d faults:\n  %s", len(faults), strings.Join(shown, "\n  "))
}
