package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/brevet-pki/brevet/enroll/tpm/tpmtest"
)

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func TestKeySignsAndSurvivesItsFile(t *testing.T) {
	m := tpmtest.NewManufacturer(t)
	device := New(m.Make(t).Path)
	key := must(device.NewKey())(t)
	der := must(key.Marshal())(t)
	read := must(device.ParseKey(der))(t)
	if !read.public.Equal(key.Public()) || !bytes.Equal(must(read.Marshal())(t), der) {
		t.Error("the key that was read from the file is another key")
	}
	message := []byte("message")
	s256, s384, s512 := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	for hash, digest := range map[crypto.Hash][]byte{crypto.SHA256: s256[:], crypto.SHA384: s384[:], crypto.SHA512: s512[:]} {
		signature := must(read.Sign(nil, digest, hash))(t)
		if !ecdsa.VerifyASN1(key.public, digest, signature) {
			t.Errorf("the signature of a digest of %v does not verify", hash)
		}
	}
	for name, c := range map[string]struct {
		digest []byte
		hash   crypto.Hash
	}{"SHA-1": {make([]byte, 20), crypto.SHA1}, "no hash": {message, 0}, "another length": {s256[:31], crypto.SHA256}} {
		if _, err := read.Sign(nil, c.digest, c.hash); err == nil {
			t.Errorf("%s: a digest of %d bytes is signed", name, len(c.digest))
		}
	}
	if _, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, read); err != nil {
		t.Errorf("make a CSR: %v", err)
	}
	stolen := must(New(m.Make(t).Path).ParseKey(der))(t)
	if _, err := stolen.Sign(nil, s256[:], crypto.SHA256); err == nil || !strings.Contains(err.Error(), "another TPM") {
		t.Errorf("another TPM signs with a copy of the file: %v", err)
	}
}

func TestKeySignsConcurrently(t *testing.T) {
	device := New(tpmtest.NewManufacturer(t).Make(t).Path)
	key := must(device.NewKey())(t)
	digest := sha256.Sum256(nil)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			signature, err := key.Sign(nil, digest[:], crypto.SHA256)
			if err != nil || !ecdsa.VerifyASN1(key.public, digest[:], signature) {
				t.Errorf("sign: %v", err)
			}
		})
	}
	group.Wait()
}

func TestDeviceExplainsWhatIsMissing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	tpm := tpmtest.NewManufacturer(t).Make(t)
	tpm.Write(t, "plain", nil)
	for path, want := range map[string]string{file: "there is no TPM", filepath.Join(tpm.Dir, "plain"): "neither a device nor a socket"} {
		if _, err := New(path).NewKey(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	tpm.Tool(t, "tpm2_changeauth", "-c", "owner", "secret")
	if _, err := New(tpm.Path).NewKey(); err == nil || !strings.Contains(err.Error(), "has a password") {
		t.Errorf("with a password of the owner hierarchy: %v", err)
	}
}

// selfSigned returns a certificate for the key.
func selfSigned(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"device"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)))(t)
}

// TestOpenSSLServesTLSWithKeyFile lets OpenSSL load the key file with tpm2-openssl, as nginx or mosquitto would.
func TestOpenSSLServesTLSWithKeyFile(t *testing.T) {
	tpm := tpmtest.NewManufacturer(t).Make(t)
	key := must(New(tpm.Path).NewKey())(t)
	certificate := selfSigned(t, key)
	tpm.Write(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: PEMType, Bytes: must(key.Marshal())(t)}))
	tpm.Write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}))
	// The query prefers the TPM for signatures alone: without it, OpenSSL also computes digests and key agreements in it,
	// which a TPM without a resource manager has no room for.
	server := tpm.Command("openssl", "s_server", "-provider", "default", "-provider", "tpm2", "-propquery", "?tpm2.signature=yes", "-key", "key.pem", "-cert", "cert.pem", "-accept", "127.0.0.1:0", "-www")
	var errs bytes.Buffer
	server.Stderr = &errs
	out := must(server.StdoutPipe())(t)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	var address string
	for line, buffer := "", make([]byte, 1); address == ""; { // OpenSSL prints "ACCEPT 127.0.0.1:port"
		if _, err := out.Read(buffer); err != nil {
			_ = server.Wait()
			t.Fatalf("openssl s_server does not serve: %v\n%s", err, errs.String())
		}
		if line += string(buffer); strings.HasSuffix(line, "\n") {
			address, _ = strings.CutPrefix(strings.TrimSpace(line), "ACCEPT ")
			if !strings.HasPrefix(line, "ACCEPT ") {
				address = ""
			}
			line = ""
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate)
	conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: "device"})
	if err != nil {
		t.Fatalf("the handshake failed: %v\n%s", err, errs.String())
	}
	defer conn.Close()
	if !key.public.Equal(conn.ConnectionState().PeerCertificates[0].PublicKey) {
		t.Error("the server has another key")
	}
}

// TestOpenSSLAcceptsTLSOfKey serves TLS with the key, for OpenSSL as a client.
func TestOpenSSLAcceptsTLSOfKey(t *testing.T) {
	tpm := tpmtest.NewManufacturer(t).Make(t)
	key := must(New(tpm.Path).NewKey())(t)
	certificate := selfSigned(t, key)
	tpm.Write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}))
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			served <- err
			return
		}
		c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{{PrivateKey: key, Certificate: [][]byte{certificate.Raw}}}})
		_, err = io.WriteString(c, "hello\n")
		served <- errors.Join(err, c.Close())
	}()
	out, err := tpm.Command("openssl", "s_client", "-connect", listener.Addr().String(), "-servername", "device", "-CAfile", "cert.pem", "-verify_return_error", "-ign_eof").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Verify return code: 0 (ok)")) || !bytes.Contains(out, []byte("hello")) {
		t.Errorf("openssl s_client: %v\n%s", err, out)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	device := New("unused")
	good := must((&Key{device, must(softwareArea())(t), []byte("private"), nil}).Marshal())(t)
	if _, err := device.ParseKey(good); err != nil {
		t.Fatal(err)
	}
	at := func(old, new string) []byte { return bytes.Replace(good, []byte(old), []byte(new), 1) }
	for name, der := range map[string][]byte{
		"empty": nil, "cut off": good[:len(good)-1], "extended": append(bytes.Clone(good), 0),
		"a sealed key":           at("\x67\x81\x05\x0a\x01\x03", "\x67\x81\x05\x0a\x01\x05"),
		"a password":             at("\xa0\x03\x01\x01\xff", "\xa0\x03\x01\x01\x00"),
		"a policy":               at("\xa0\x03\x01\x01\xff", "\xa1\x03\x01\x01\xff"),
		"a parent that persists": at("\x02\x04\x40\x00\x00\x01", "\x02\x04\x41\x00\x00\x01"),
		"another curve":          at("\x00\x10\x00\x03", "\x00\x10\x00\x04"),
	} {
		if _, err := device.ParseKey(der); err == nil {
			t.Errorf("%s: the key file is accepted", name)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	device := New("unused")
	f.Add(must((&Key{device, must(softwareArea())(f), []byte("private"), nil}).Marshal())(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := device.ParseKey(der)
		if err != nil {
			return
		}
		again, err := device.ParseKey(must(key.Marshal())(t))
		if err != nil || !bytes.Equal(again.area, key.area) || !bytes.Equal(again.private, key.private) || !again.public.Equal(key.public) {
			t.Fatalf("the key is another one after encoding it again: %v", err)
		}
	})
}

// softwareArea returns the public area of a key that is in no TPM.
func softwareArea() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	area := keyTemplate()
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	return tpm2.Marshal(area), nil
}
