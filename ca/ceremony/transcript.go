package ceremony

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/brevet-pki/brevet/pki"
)

// HSM identifies the HSM that holds a ceremony's key. Empty fields are omitted from the transcript.
type HSM struct {
	Label  string
	Serial string
	Key    string // the label of the key
}

// Transcript describes a ceremony for people, to be printed, read aloud, signed on paper and kept. It contains no
// secrets.
type Transcript struct {
	Act      string // what was done, such as "made the root certificate"
	Command  string // the command that was run
	At       time.Time
	Software string // name and version
	HSM      HSM
	// TrustDomain is the SPIFFE trust domain of a signed CA, even if its certificate does not contain it.
	TrustDomain string
	// Request is the request that was made or signed, Certificate and CRL are what was made. Each may be nil.
	Request     *x509.CertificateRequest
	Certificate *x509.Certificate
	CRL         *x509.RevocationList
	// Signers are the people or roles that sign on paper, each on a line.
	Signers []string
}

// String formats the transcript as plain text, in lines of about 80 characters unless the fields are longer. The same
// fields always produce the same text, so that two printings can be compared.
func (t Transcript) String() string {
	var p page
	p.title("CA KEY CEREMONY: TRANSCRIPT")
	p.field("What was done", t.Act)
	p.field("When", formatTime(t.At))
	p.field("Command", t.Command)
	p.field("Software", t.Software)
	p.field("HSM", t.HSM.Label)
	p.field("HSM serial", t.HSM.Serial)
	p.field("HSM key", t.HSM.Key)
	p.field("Trust domain", t.TrustDomain)
	if t.Request != nil {
		p.request(t.Request)
	}
	if t.Certificate != nil {
		p.certificate(t.Certificate)
	}
	if t.CRL != nil {
		p.crl(t.CRL)
	}
	p.signatures(t.Signers)
	return p.String()
}

// page is the text of a transcript.
type page struct{ strings.Builder }

func (p *page) title(text string) {
	fmt.Fprintf(p, "%s\n%s\n\n", text, strings.Repeat("=", len(text)))
}

func (p *page) section(text string) {
	fmt.Fprintf(p, "\n%s\n%s\n", text, strings.Repeat("-", len(text)))
}

// field writes one line. It quotes a value with unprintable characters, which could forge lines or be invisible.
func (p *page) field(name, value string) {
	if value == "" {
		return
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return !strconv.IsGraphic(r) }) {
		value = strconv.Quote(value)
	}
	fmt.Fprintf(p, "%-16s%s\n", name, value)
}

func (p *page) request(r *x509.CertificateRequest) {
	p.section("Certificate request (PKCS #10)")
	p.field("Subject", nameText(r.RawSubject))
	p.field("Key", keyText(r.PublicKey))
	p.digest("SHA-256 of the request (DER)", r.Raw)
	p.digest("SHA-256 of its public key (SubjectPublicKeyInfo)", r.RawSubjectPublicKeyInfo)
}

func (p *page) certificate(c *x509.Certificate) {
	p.section("Certificate")
	p.field("Subject", nameText(c.RawSubject))
	p.field("Issuer", nameText(c.RawIssuer))
	p.field("Serial number", serialText(c.SerialNumber))
	p.field("Not before", formatTime(c.NotBefore))
	p.field("Not after", formatTime(c.NotAfter))
	p.field("Key", keyText(c.PublicKey))
	p.field("Signed with", c.SignatureAlgorithm.String())
	if c.MaxPathLen >= 0 {
		p.field("Path length", strconv.Itoa(c.MaxPathLen))
	}
	p.field("Constrained to", strings.Join(slices.Concat(prefixed("URI:", c.PermittedURIDomains), prefixed("DNS:", c.PermittedDNSDomains)), ", "))
	p.field("CRL at", strings.Join(c.CRLDistributionPoints, ", "))
	p.field("Issuer at", strings.Join(c.IssuingCertificateURL, ", "))
	p.digest("SHA-256 of the certificate (DER)", c.Raw)
	p.digest("SHA-256 of its public key (SubjectPublicKeyInfo)", c.RawSubjectPublicKeyInfo)
}

func prefixed(prefix string, names []string) []string {
	var all []string
	for _, name := range names {
		all = append(all, prefix+name)
	}
	return all
}

func (p *page) crl(l *x509.RevocationList) {
	p.section("Certificate revocation list")
	p.field("Issuer", nameText(l.RawIssuer))
	p.field("Number", fmt.Sprint(l.Number))
	p.field("This update", formatTime(l.ThisUpdate))
	p.field("Next update", formatTime(l.NextUpdate))
	p.field("Signed with", l.SignatureAlgorithm.String())
	p.field("Entries", strconv.Itoa(len(l.RevokedCertificateEntries)))
	for _, e := range l.RevokedCertificateEntries {
		reason := fmt.Sprintf("reason(%d)", e.ReasonCode)
		if r, err := pki.ReasonFromCode(e.ReasonCode); err == nil {
			reason = r.String()
		}
		p.field("  revoked", fmt.Sprintf("%s  %s  %s", serialText(e.SerialNumber), formatTime(e.RevocationTime), reason))
	}
	p.digest("SHA-256 of the CRL (DER)", l.Raw)
}

// digest writes a SHA-256 hash in numbered lines of four groups, for reading aloud.
func (p *page) digest(name string, content []byte) {
	sum := fmt.Sprintf("%X", sha256.Sum256(content))
	fmt.Fprintf(p, "\n%s\n", name)
	for line := range 4 {
		part := sum[16*line : 16*line+16]
		fmt.Fprintf(p, "    %d:  %s  %s  %s  %s\n", line+1, part[:4], part[4:8], part[8:12], part[12:])
	}
}

func (p *page) signatures(signers []string) {
	if len(signers) == 0 {
		return
	}
	p.section("Signatures")
	fmt.Fprint(p, "We were present, and compared the digests above with those on the screen.\n")
	for _, s := range signers {
		fmt.Fprintf(p, "\n\n\n%s    %s\n", strings.Repeat("_", 36), strings.Repeat("_", 36))
		fmt.Fprintf(p, "%-36s    place, date\n", s)
	}
}

func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// serialText formats a serial number in whole bytes, as OpenSSL does.
func serialText(n *big.Int) string {
	if s, err := pki.SerialFromInt(n); err == nil {
		return s.String()
	}
	return fmt.Sprintf("%X", n)
}
