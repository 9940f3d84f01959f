package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/enroll/tpm"
)

// finding is the result of one check of the doctor command.
type finding struct {
	Check   string `json:"check"`             // a configuration key, or "credential"
	OK      bool   `json:"ok"`                // whether the check found no fault
	Found   string `json:"found,omitempty"`   // what was checked, if there is no fault
	Problem string `json:"problem,omitempty"` // the fault, and what would pass
}

// doctorCommand checks everything that the agent needs, without enrolling.
func doctorCommand(ctx context.Context, args []string, s streams) error {
	set, flags, err := parseFlags("doctor", args)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(flags)
	if err != nil {
		return err
	}
	findings := set.examine(ctx, time.Now())
	if asJSON {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(findings)
	} else {
		err = printFindings(s.out, findings)
	}
	if err != nil {
		return err
	}
	var faults []string
	for _, f := range findings {
		if !f.OK {
			faults = append(faults, f.Check)
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("there are faults in %s: correct what is shown for them", strings.Join(faults, ", "))
	}
	return nil
}

func printFindings(w io.Writer, findings []finding) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		state, text := "ok", f.Found
		if !f.OK {
			state, text = "fault", f.Problem
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Check, state, text)
	}
	return t.Flush()
}

// examine makes all checks that apply to the configuration.
func (set settings) examine(ctx context.Context, now time.Time) []finding {
	device := set.device()
	pair, _ := enroll.ReadPair(set.StateDir) // the check of the credential reports an error
	checks := []struct {
		name    string
		applies bool
		check   func() (found string, err error)
	}{
		{"state_dir", true, set.checkStateDir},
		{"credential", true, func() (string, error) { return set.checkCredential(now) }},
		{"token_file", set.TokenFile != "", func() (string, error) { return set.checkToken(pair) }},
		{"factory_certificate", set.FactoryCertificate != factorySettings{}, func() (string, error) {
			return set.FactoryCertificate.check(device, now)
		}},
		{"key.tpm", set.Key.TPM != "", func() (string, error) { return checkTPM(device) }},
		{"jwt", set.JWT != jwtSettings{}, func() (string, error) { return set.JWT.check(now) }},
		{"server", true, func() (string, error) { return set.reach(ctx, pair) }},
	}
	var findings []finding
	for _, c := range checks {
		if !c.applies {
			continue
		}
		f := finding{Check: c.name}
		found, err := c.check()
		if f.OK = err == nil; f.OK {
			f.Found = found
		} else {
			f.Problem = err.Error()
		}
		findings = append(findings, f)
	}
	return findings
}

// checkStateDir checks that this user may write to the directory of the credential.
func (set settings) checkStateDir() (string, error) {
	const writable, enterable = 2, 1 // W_OK and X_OK of access(2)
	err := syscall.Access(set.StateDir, writable|enterable)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return set.StateDir + " does not exist yet, and the agent makes it", nil
	case err != nil:
		return "", fmt.Errorf("user %d cannot write to %s: %w: run this as the agent's user, or change the owner",
			os.Geteuid(), set.StateDir, err)
	}
	return set.StateDir + " is writable", nil
}

// checkCredential reports the state of the credential as the status command does. Without a credential, the evidence is
// examined instead.
func (set settings) checkCredential(now time.Time) (string, error) {
	r := set.report(now)
	switch r.State {
	case stateOK, stateRetrying:
		return fmt.Sprintf("%s, valid until %s", r.Identity, stamp(r.NotAfter)), nil
	case stateNotEnrolled:
		if len(set.kinds(set.TokenFile != "")) > 0 && r.LastError == nil {
			return r.Problem, nil
		}
	}
	return "", fmt.Errorf("%s: %s", r.Problem, r.NextStep)
}

// checkToken checks the enrollment token, unless the credential was obtained with another one.
func (set settings) checkToken(pair *enroll.Pair) (string, error) {
	t, err := enroll.ReadTokenFile(set.TokenFile, nil)
	switch {
	case err != nil && pair != nil:
		return "there is no token that can be used, and the agent needs none while it has a certificate", nil
	case err != nil:
		return "", err
	case pair != nil && pair.Origin.Token == t.Subject():
		return "the token was used for the credential", nil
	}
	return fmt.Sprintf("a token for the trust domain %s, at %s", t.TrustDomain, t.Server), nil
}

// check checks the certificate and the key, and signs with the key if it is in a TPM.
func (f factorySettings) check(device *tpm.Device, now time.Time) (string, error) {
	c, err := enroll.ReadFactoryCertificate(f.Certificate, f.Key, device)
	if err != nil {
		return "", err
	}
	if _, err := enroll.FactoryCertificate(c); err != nil {
		return "", err
	}
	home := "in a file"
	if key, ok := c.PrivateKey.(*tpm.Key); ok {
		digest := sha256.Sum256([]byte("brevet-agent doctor"))
		if _, err := key.Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
			return "", err
		}
		home = "in the TPM " + device.Path()
	}
	switch leaf := c.Leaf; {
	case now.After(leaf.NotAfter):
		return "", fmt.Errorf("the factory certificate expired at %s by this machine's clock: check the clock; "+
			"the server refuses an expired certificate", stamp(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return "", fmt.Errorf("the factory certificate is not valid before %s by this machine's clock: check the clock",
			stamp(leaf.NotBefore))
	default:
		chain := "without the CA certificates above it"
		if n := len(c.Certificate) - 1; n == 1 {
			chain = "with 1 CA certificate"
		} else if n > 1 {
			chain = fmt.Sprintf("with %d CA certificates", n)
		}
		return fmt.Sprintf("%s of %s, valid until %s, %s, its key is %s", leaf.Subject, leaf.Issuer, stamp(leaf.NotAfter), chain, home), nil
	}
}

// checkTPM checks that the agent can use the TPM.
func checkTPM(device *tpm.Device) (string, error) {
	ek, err := device.Endorsement()
	if err != nil {
		return "", err
	}
	certified := "without a certificate"
	if len(ek.Certificate) > 0 {
		certified = "with a certificate of the manufacturer"
	}
	return fmt.Sprintf("endorsement key %s, %s", hex.EncodeToString(ek.Hash[:]), certified), nil
}

func (j jwtSettings) check(now time.Time) (string, error) {
	token, err := enroll.ReadJWT(j.File)
	switch {
	case err != nil:
		return "", err
	case token.ExpiresAt.IsZero():
		return "", fmt.Errorf("the JWT in %s has no claim exp: the server accepts no such token", j.File)
	case now.After(token.ExpiresAt):
		return "", fmt.Errorf("the JWT in %s expired at %s by this machine's clock: check the clock, and what renews the file",
			j.File, stamp(token.ExpiresAt))
	}
	return "a token that is valid until " + stamp(token.ExpiresAt), nil
}

// reach connects to the server and verifies its certificate. It sends no evidence.
func (set settings) reach(ctx context.Context, pair *enroll.Pair) (string, error) {
	client, err := enroll.NewClient(set.Server)
	if err != nil {
		return "", err
	}
	var server string
	b := set.bootstrap()
	if t, err := set.token(); b == (enroll.Bootstrap{}) && err == nil {
		b = t.Bootstrap
	}
	switch {
	case pair != nil:
		server, err = client.Reach(ctx, pair.Origin.Server, enroll.AnonymousTLS(pair.RootPool(), pair.ID().TrustDomain()))
	case b != (enroll.Bootstrap{}):
		server, err = client.Reach(ctx, b.Server, b.TLS())
	default:
		return "", errors.New("the agent cannot recognize the server: give it a token, or set server, trust_domain and " +
			"root_fingerprint")
	}
	if err != nil {
		return "", err
	}
	return server + " shows a valid certificate", nil
}
