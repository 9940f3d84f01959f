package tpm

import (
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/pki/attest"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/ra/nonce"
	server "github.com/brevet-pki/brevet/ra/tpm"
)

// newServer returns an authenticator that trusts a manufacturer.
func newServer(t testing.TB, m *tpmtest.Manufacturer) *server.Authenticator {
	t.Helper()
	root, intermediate := m.CAs(t)
	nonces := must(nonce.FromKey([32]byte{1}, [16]byte{1}))(t)
	return must(server.New("fleet.example", []server.Source{{Name: "acme", Roots: []*x509.Certificate{root}, Intermediates: []*x509.Certificate{intermediate}}}, nonces))(t)
}

var request = must(pki.RequestIDFromBytes([]byte("0123456789abcdef")))

// challenge requests a challenge for a key.
func challenge(t testing.TB, a *server.Authenticator, public []byte, key pki.KeyHash) []byte {
	t.Helper()
	return must(a.Challenge(t.Context(), ra.ChallengeRequest{Kind: pki.EvidenceTPM, Request: request(t), Key: key, Public: public}, time.Now()))(t)
}

func identify(t testing.TB, a *server.Authenticator, evidence []byte, key pki.KeyHash) (ra.Claim, error) {
	t.Helper()
	return a.Identify(t.Context(), ra.Presented{Evidence: evidence, Request: request(t), Key: key, At: time.Now()})
}

func TestServerAcceptsEveryEndorsementKey(t *testing.T) {
	m := tpmtest.NewManufacturer(t)
	tpm := m.Make(t)
	a := newServer(t, m)
	for i, ek := range templates {
		t.Run(fmt.Sprintf("index %08x", uint32(ek.index)), func(t *testing.T) {
			device := New(tpm.Path)
			device.ek = &templates[i]
			key := must(device.NewKey())(t)
			hash := must(pki.HashKey(key.Public()))(t)
			response := must(device.Respond("fleet.example", challenge(t, a, must(device.Describe())(t), hash), key))(t)
			claim, err := identify(t, a, response, hash)
			if err != nil {
				t.Fatal(err)
			}
			endorsement := must(device.Endorsement())(t)
			if claim.Subject != (pki.EvidenceSubject{Kind: pki.EvidenceTPM, Hash: endorsement.Hash}) || !claim.HardwareKey || claim.Nonce.IsZero() {
				t.Errorf("the claim is %+v, and the endorsement key has the hash %x", claim, endorsement.Hash)
			}
			certified := ek.index == 0x01c00002 || ek.index == 0x01c00016 // those that swtpm_setup certifies
			want := map[string]any{
				"tpm.ek": hex.EncodeToString(endorsement.Hash[:]), "tpm.certified": certified, "tpm.source": "", "tpm.manufacturer": "", "tpm.model": "", "tpm.version": "",
			}
			if certified {
				want["tpm.source"], want["tpm.manufacturer"], want["tpm.model"], want["tpm.version"] = "acme", "id:00001014", "swtpm", "id:20191023"
			}
			for name, value := range want {
				if claim.Facts[name] != value {
					t.Errorf("the fact %s is %v, want %v", name, claim.Facts[name], value)
				}
			}
		})
	}
}

// TestDeviceChoosesCertifiedEndorsementKey removes the certificates one by one, as from a TPM that has fewer.
func TestDeviceChoosesCertifiedEndorsementKey(t *testing.T) {
	tpm := tpmtest.NewManufacturer(t).Make(t)
	var seen []string
	for _, next := range []string{"0x01c00002", "0x01c00016", ""} {
		e := must(New(tpm.Path).Endorsement())(t)
		area := must(tpm2.Unmarshal[tpm2.TPMTPublic](e.Public))(t)
		seen = append(seen, fmt.Sprintf("%v %v", area.Type == tpm2.TPMAlgRSA, len(e.Certificate) > 0))
		if next != "" {
			tpm.Tool(t, "tpm2_nvundefine", "-C", "p", next)
		}
	}
	if got := strings.Join(seen, ", "); got != "true true, false true, true false" {
		t.Errorf("whether the chosen keys are RSA and certified: %s", got)
	}
}

func TestTPMRespondsOnlyToItsOwnChallenge(t *testing.T) {
	m := tpmtest.NewManufacturer(t)
	mine, other := New(m.Make(t).Path), New(m.Make(t).Path)
	a := newServer(t, m)
	key, foreign := must(mine.NewKey())(t), must(other.NewKey())(t)
	hash := must(pki.HashKey(key.Public()))(t)
	forOther := challenge(t, a, must(other.Describe())(t), hash)
	if _, err := mine.Respond("fleet.example", forOther, key); err == nil || !strings.Contains(err.Error(), "another TPM") {
		t.Errorf("a TPM responds to the challenge for another: %v", err)
	}
	if _, err := mine.Respond("fleet.example", forOther, foreign); err == nil || !strings.Contains(err.Error(), "another TPM") {
		t.Errorf("a TPM responds with the key of another: %v", err)
	}
	// The other TPM activates its challenge, and this TPM certifies the key.
	helped := must(attest.ParseResponse(must(other.Respond("fleet.example", forOther, foreign))(t)))(t)
	helped.Key = key.area
	_, err := identify(t, a, must(helped.Marshal())(t), hash)
	refused(t, "a certified key of another TPM", err, pki.RuleEvidenceKey)
	own := must(attest.ParseResponse(must(mine.Respond("fleet.example", challenge(t, a, must(mine.Describe())(t), hash), key))(t)))(t)
	own.Secret = helped.Secret
	_, err = identify(t, a, must(own.Marshal())(t), hash)
	refused(t, "a challenge that another TPM activated", err, pki.RuleEvidenceSignature)
}

func refused(t testing.TB, name string, err error, rule pki.Rule) {
	t.Helper()
	if r, ok := pki.AsRefusal(err); !ok || r.Rule != rule {
		t.Errorf("%s: got %v, want a refusal by %s", name, err, rule)
	}
}

// credentialHeader begins the files of tpm2_makecredential and tpm2_activatecredential: a magic number and the version.
const credentialHeader = "\xba\xdc\xc0\xde\x00\x00\x00\x01"

func sized(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// TestDeviceActivatesCredentialOfTools lets tpm2_makecredential encrypt a secret for the keys of the device.
func TestDeviceActivatesCredentialOfTools(t *testing.T) {
	tpm := tpmtest.NewManufacturer(t).Make(t)
	for i := range templates {
		device := New(tpm.Path)
		device.ek = &templates[i]
		keys := must(attest.ParseDevice(must(device.Describe())(t)))(t)
		ak := must(tpm2.Unmarshal[tpm2.TPMTPublic](keys.AK))(t)
		tpm.Write(t, "ek.pub", sized(keys.EK))
		name := hex.EncodeToString(must(tpm2.ObjectName(ak))(t).Buffer)
		tpm.Write(t, "secret", []byte("the secret of the tools"))
		_ = os.Remove(filepath.Join(tpm.Dir, "credential"))
		tpm.Tool(t, "tpm2_makecredential", "-u", "ek.pub", "-n", name, "-s", "secret", "-o", "credential")
		var c attest.Challenge
		rest := tpm.File(t, "credential")[len(credentialHeader):]
		for _, to := range []*[]byte{&c.Credential, &c.Secret} {
			size := int(binary.BigEndian.Uint16(rest))
			*to, rest = rest[2:2+size], rest[2+size:]
		}
		key := must(device.NewKey())(t)
		r := must(attest.ParseResponse(must(device.Respond("fleet.example", must(c.Marshal())(t), key))(t)))(t)
		if string(r.Secret) != "the secret of the tools" {
			t.Errorf("template %d: the device decrypts %q", i, r.Secret)
		}
	}
}

// TestServerAcceptsResponseOfTools makes all keys and the response with tpm2-tools. Only TPM2_Certify is sent byte by
// byte, because tpm2_certify cannot set the qualifying data.
func TestServerAcceptsResponseOfTools(t *testing.T) {
	m := tpmtest.NewManufacturer(t)
	tpm := m.Make(t)
	a := newServer(t, m)
	for _, ek := range []string{"rsa", "ecc"} {
		for _, ak := range [][]string{{"ecc", "ecdsa"}, {"rsa", "rsassa"}, {"rsa", "rsapss"}} {
			t.Run(strings.Join(append(ak, "with", ek), " "), func(t *testing.T) { respondWithTools(t, tpm, a, ek, ak[0], ak[1]) })
		}
	}
}

func respondWithTools(t *testing.T, tpm *tpmtest.TPM, a *server.Authenticator, ekType, akType, scheme string) {
	for _, name := range []string{"ek.ctx", "ek.pub", "ak.ctx", "ak.pub", "ak.name", "primary.ctx", "key.pub", "key.priv", "key.ctx", "session.ctx", "secret"} {
		_ = os.Remove(filepath.Join(tpm.Dir, name))
	}
	tpm.Tool(t, "tpm2_createek", "-G", ekType, "-c", "ek.ctx", "-u", "ek.pub")
	tpm.Tool(t, "tpm2_createak", "-C", "ek.ctx", "-G", akType, "-s", scheme, "-g", "sha256", "-c", "ak.ctx", "-u", "ak.pub", "-n", "ak.name")
	tpm.Tool(t, "tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "primary.ctx")
	tpm.Tool(t, "tpm2_create", "-C", "primary.ctx", "-G", "ecc", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
	area := func(name string) []byte { return tpm.File(t, name)[2:] }
	key := must(parsePublic(area("key.pub")))(t)
	hash := must(pki.HashKey(key))(t)
	public := must(attest.Device{EK: area("ek.pub"), AK: area("ak.pub")}.Marshal())(t)
	c := must(attest.ParseChallenge(challenge(t, a, public, hash)))(t)

	tpm.Write(t, "credential", append([]byte(credentialHeader), append(sized(c.Credential), sized(c.Secret)...)...))
	tpm.Tool(t, "tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
	tpm.Tool(t, "tpm2_policysecret", "-S", "session.ctx", "-c", "e")
	tpm.Tool(t, "tpm2_activatecredential", "-c", "ak.ctx", "-C", "ek.ctx", "-i", "credential", "-o", "secret", "-P", "session:session.ctx")
	tpm.Tool(t, "tpm2_flushcontext", "session.ctx")

	r := attest.Response{Sealed: c.Sealed, Secret: tpm.File(t, "secret"), AK: area("ak.pub"), Key: area("key.pub")}
	r.Statement, r.Signature = certifyWithTools(t, tpm, attest.QualifyingData("fleet.example", c.Sealed))
	claim, err := identify(t, a, must(r.Marshal())(t), hash)
	if err != nil || claim.Facts["tpm.certified"] != false {
		t.Errorf("the response of the tools is refused: %v, %v", claim.Facts, err)
	}
	tpm.Tool(t, "tpm2_certify", "-c", "key.ctx", "-C", "ak.ctx", "-g", "sha256", "--scheme", scheme, "-o", "statement", "-s", "signature")
	r.Statement, r.Signature = tpm.File(t, "statement"), tpm.File(t, "signature")
	_, err = identify(t, a, must(r.Marshal())(t), hash)
	if refused(t, "tpm2_certify", err, pki.RuleEvidenceKey); err == nil || !strings.Contains(err.Error(), "another challenge") {
		t.Errorf("the statement of tpm2_certify is refused for more than its qualifying data: %v", err)
	}
}

// certifyWithTools loads both keys and sends TPM2_Certify with tpm2_send.
func certifyWithTools(t *testing.T, tpm *tpmtest.TPM, qualifying []byte) (statement, signature []byte) {
	t.Helper()
	var handles []byte
	for i, name := range []string{"key.ctx", "ak.ctx"} {
		// A tool that reads a saved context leaves it loaded. Handles of loaded keys count from 0x80000000.
		if out, err := tpm.Command("tpm2_readpublic", "-c", name).CombinedOutput(); err != nil {
			t.Fatalf("load %s: %v\n%s", name, err, out)
		}
		handles = binary.BigEndian.AppendUint32(handles, 0x80000000+uint32(i))
	}
	body := append(slices.Clone(handles), 0, 0, 0, 18) // two passwords, both empty
	for range 2 {
		body = append(body, "\x40\x00\x00\x09\x00\x00\x00\x00\x00"...)
	}
	body = append(append(body, sized(qualifying)...), 0, 0x10) // the scheme of the key
	command := append(binary.BigEndian.AppendUint32([]byte{0x80, 2}, uint32(10+len(body))), 0, 0, 1, 0x48)
	tpm.Write(t, "command", append(command, body...))
	tpm.Tool(t, "tpm2_send", "command", "-o", "response")
	response := tpm.File(t, "response")
	if code := binary.BigEndian.Uint32(response[6:]); code != 0 {
		t.Fatalf("TPM2_Certify: %s", strconv.FormatUint(uint64(code), 16))
	}
	parameters := response[14 : 14+binary.BigEndian.Uint32(response[10:])]
	size := int(binary.BigEndian.Uint16(parameters))
	return parameters[2 : 2+size], parameters[2+size:]
}
