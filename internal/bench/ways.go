package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"
	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/internal/cli/client"
	"github.com/brevet-pki/brevet/pki"
)

const (
	wrkConnections = 64
	wrkPatience    = 5 * time.Second // for one answer
	// wrkMargin is by how much the bytes of an answer under load may differ from those of one without: a refusal has
	// five, and a client that gets them is served quickly.
	wrkMargin = 0.01
	wrkRound  = time.Second // at least, and what it counts in
	// nonceSize is what RFC 9654 has clients send.
	nonceSize = 32
)

//go:embed ocsp.lua
var wrkScript []byte

// findWrk returns the path of the program that asks.
func findWrk() (string, error) {
	path, err := exec.LookPath("wrk")
	if err != nil {
		return "", errors.New("there is no wrk on the PATH, which asks: install it (Debian: apt-get install wrk), or run deploy/setup.sh --test")
	}
	return path, nil
}

// A way is one way to ask, with requests in a file that wrk sends as they are.
type way struct {
	name     string
	compared bool // with a bare handler
	requests [][]byte
	script   string
	file     string
	octets   float64 // of a response with its header, on average
	body     float64 // of that without
}

// writeWays prepares requests about certificates of one CA: by GET as RFC 6960 appendix A.1 writes them, by POST, and by
// POST with a nonce.
func writeWays(dir string, issuer *x509.Certificate, refs []pki.CertRef) ([]*way, error) {
	get, post, nonce := &way{name: "get", compared: true}, &way{name: "post", compared: true}, &way{name: "nonce"}
	for _, ref := range refs {
		der, err := ocsp.CreateRequest(&x509.Certificate{SerialNumber: ref.Serial.Int()}, issuer, &ocsp.RequestOptions{Hash: crypto.SHA1})
		if err != nil {
			return nil, err
		}
		encoded := url.QueryEscape(base64.StdEncoding.EncodeToString(der)) // of base64 it escapes what RFC 6960 has escaped
		get.requests = append(get.requests, []byte("GET /ocsp/"+encoded+" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))
		post.requests = append(post.requests, postRequest(der))
		if der, err = withNonce(der); err != nil {
			return nil, err
		}
		nonce.requests = append(nonce.requests, postRequest(der))
	}
	ways := []*way{get, post, nonce}
	script := filepath.Join(dir, "ocsp.lua")
	if err := os.WriteFile(script, wrkScript, 0o600); err != nil {
		return nil, err
	}
	for _, w := range ways {
		w.script, w.file = script, filepath.Join(dir, w.name+".requests")
		var all bytes.Buffer
		for _, q := range w.requests {
			fmt.Fprintf(&all, "%d\n%s", len(q), q)
		}
		if err := os.WriteFile(w.file, all.Bytes(), 0o600); err != nil {
			return nil, err
		}
	}
	return ways, nil
}

func postRequest(der []byte) []byte {
	head := "POST /ocsp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/ocsp-request\r\nContent-Length: " + strconv.Itoa(len(der)) + "\r\n\r\n"
	return append([]byte(head), der...)
}

// withNonce adds a random nonce to a request that has no extensions (RFC 9654 section 2.1).
func withNonce(der []byte) ([]byte, error) {
	outer := cryptobyte.String(der)
	var request, tbs cryptobyte.String
	if !outer.ReadASN1(&request, asn1.SEQUENCE) || !request.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil, errors.New("what was made is no OCSP request")
	}
	random := make([]byte, nonceSize)
	_, _ = rand.Read(random) // never fails
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(tbs)
			b.AddASN1(asn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1ObjectIdentifier([]int{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}) // id-pkix-ocsp-nonce
						b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(random) })
					})
				})
			})
		})
	})
	return b.Bytes()
}

// tryOut sends each request once, over a few connections, and looks at the answers: all have to be signed ones. It takes
// the mean of their bytes, and lets go of the requests, which are in the file.
func (w *way) tryOut(ctx context.Context, address string) error {
	const connections = 16
	var octets, body atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for n := range connections {
		group.Go(func() error {
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			defer conn.Close()
			counted := &countingReader{Reader: conn}
			answers := bufio.NewReader(counted)
			for i := n; i < len(w.requests); i += connections {
				size, err := w.exchange(conn, answers, w.requests[i])
				if err != nil {
					return fmt.Errorf("ask by %s: %w", w.name, err)
				}
				body.Add(int64(size))
			}
			octets.Add(counted.n) // nothing comes after the last answer
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	w.octets, w.body = float64(octets.Load())/float64(len(w.requests)), float64(body.Load())/float64(len(w.requests))
	w.requests = nil
	return nil
}

// exchange sends a request and reads the answer, of which it returns the bytes of the body.
func (w *way) exchange(conn net.Conn, answers *bufio.Reader, request []byte) (int, error) {
	if err := conn.SetDeadline(time.Now().Add(client.CallTimeout)); err != nil {
		return 0, err
	}
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	der, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, errors.Join(fmt.Errorf("the server answers HTTP %s", resp.Status), err)
	}
	if _, err := ocsp.ParseResponse(der, nil); err != nil { // which checks the signature by the delegate
		return 0, err
	}
	return len(der), nil
}

type countingReader struct {
	io.Reader
	n int64
}

// Read implements io.Reader.
func (r *countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.n += int64(n)
	return n, err
}

// asked is what wrk got.
type asked struct {
	rate     float64 // answers of a second
	p50, p99 float64 // milliseconds
	// Processor time of an answer in microseconds, which says more than a rate where others use the machine too.
	serverCPU, loadCPU float64
}

// ask has wrk ask a process for d. Answers of another size than so many bytes are refusals; 0 is any size.
func (r *ocspRig) ask(ctx context.Context, w *way, address string, process *os.Process, octets float64, d time.Duration) (asked, error) {
	cmd := exec.CommandContext(ctx, r.wrk, "--threads", "1", "--connections", strconv.Itoa(wrkConnections),
		"--duration", strconv.Itoa(int(d/time.Second))+"s", "--timeout", strconv.Itoa(int(wrkPatience/time.Second))+"s",
		"--script", w.script, "http://"+address, w.file)
	endWithParent(cmd)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	before, err := cpuOf(process)
	if err != nil {
		return asked{}, err
	}
	if err := cmd.Run(); err != nil {
		return asked{}, fmt.Errorf("wrk: %w: %s", err, said.Bytes())
	}
	after, err := cpuOf(process)
	if err != nil {
		return asked{}, err
	}
	var result struct {
		Answers float64 `json:"answers"`
		Octets  float64 `json:"octets"`
		Took    float64 `json:"took_us"`
		Failed  int     `json:"failed"`
		P50     float64 `json:"p50_us"`
		P99     float64 `json:"p99_us"`
	}
	lines := bytes.Split(bytes.TrimSpace(said.Bytes()), []byte("\n"))
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil {
		return asked{}, fmt.Errorf("wrk does not say what it got: %w: %s", err, said.Bytes())
	}
	if result.Failed > 0 {
		return asked{}, fmt.Errorf("%d of %.0f requests by %s failed: %s", result.Failed, result.Answers, w.name, said.Bytes())
	}
	if got := result.Octets / result.Answers; octets > 0 && !(math.Abs(got-octets) < wrkMargin*octets) {
		return asked{}, fmt.Errorf("answers by %s have %.0f bytes under load and %.0f without: some are refusals", w.name, got, octets)
	}
	return asked{
		rate: result.Answers / result.Took * 1e6, p50: result.P50 / 1000, p99: result.P99 / 1000,
		serverCPU: micros(after-before) / result.Answers, loadCPU: micros(cpuOfEnded(cmd)) / result.Answers,
	}, nil
}
