package fleet

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

const (
	// maxCalls is the maximum number of calls that the agents of a process have open. Further calls wait, because the
	// agents share the memory and the files of one machine.
	maxCalls = 2048
	// maxConnecting is the maximum number of TLS handshakes of a process, because the agents share its processors.
	maxConnecting = 32
)

// Options describes the agents that [Run] runs.
type Options struct {
	Dir      string // of the credential directories
	First    int    // number of the first device
	Agents   int
	Lifetime time.Duration // requested for new certificates
}

// The lines by which the process of the agents and the measurement communicate.
const (
	LineReady = "ready"
	LineBegin = "begin"
	LineEnd   = "end"
)

// Event is the first request of a device, or a new certificate.
type Event struct {
	Device int // its number
	At     time.Time
	Issued bool // it has a new certificate
}

func (e Event) String() string { return fmt.Sprint(e.Device, e.At.UnixMicro(), e.Issued) }

func parseEvent(line string) (e Event, err error) {
	var at int64
	_, err = fmt.Sscan(line, &e.Device, &at, &e.Issued)
	e.At = time.UnixMicro(at)
	return e, err
}

// Report is what the agents of a process did.
type Report struct {
	Agents      int     `json:"agents"`
	AgentKiB    float64 `json:"agent_kib"`   // resident memory for each agent that waits
	Calls       int64   `json:"calls"`       // requests for certificates
	Refused     int64   `json:"refused"`     // of them, those that the server refused with a retry delay
	Unreachable int64   `json:"unreachable"` // of them, those without a connection to the server, or without a response
	Failed      int64   `json:"failed"`      // of them, those that failed for another reason
	Invalid     int     `json:"invalid"`     // agents without a valid certificate at the end
	Error       string  `json:"error"`       // one of the errors of failed requests and ended agents
}

// Plus returns the sum of two reports: the mean of the memory, and the last error.
func (r Report) Plus(other Report) Report {
	return Report{
		Agents: r.Agents + other.Agents, AgentKiB: (r.AgentKiB*float64(r.Agents) + other.AgentKiB*float64(other.Agents)) / float64(max(1, r.Agents+other.Agents)),
		Calls: r.Calls + other.Calls, Refused: r.Refused + other.Refused, Unreachable: r.Unreachable + other.Unreachable,
		Failed: r.Failed + other.Failed, Invalid: r.Invalid + other.Invalid, Error: cmp.Or(other.Error, r.Error),
	}
}

// Follow reads what Run writes after the line "ready". It sends the events, and returns the report.
func Follow(lines *bufio.Scanner, events chan<- Event) (Report, error) {
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "{") {
			var r Report
			err := json.Unmarshal(lines.Bytes(), &r)
			return r, err
		}
		e, err := parseEvent(lines.Text())
		if err != nil {
			return Report{}, fmt.Errorf("a process of agents wrote %q: %w", lines.Text(), err)
		}
		events <- e
	}
	return Report{}, errors.Join(errors.New("a process of agents ended without a report"), lines.Err())
}

// Run makes the agents, and writes the line "ready". When it has read the line "begin", it runs all of them. It writes
// a line for each Event: the number of the device, the Unix time in microseconds, and whether it has a new certificate.
// When it has read the line "end", it stops the agents, and writes the Report as one line of JSON.
func Run(ctx context.Context, o Options, in io.Reader, out io.Writer) error {
	f := &fleet{Options: o, out: out, calls: make(chan struct{}, maxCalls), connecting: make(chan struct{}, maxConnecting)}
	defer f.close()
	if err := f.open(ctx); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	if err := f.write(LineReady); err != nil {
		return err
	}
	if !lines.Scan() || lines.Text() != LineBegin {
		return errors.Join(errors.New("the measurement ended before the agents began"), lines.Err())
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var agents sync.WaitGroup
	for _, m := range f.members {
		agents.Go(func() {
			if err := m.agent.Run(ctx); err != nil {
				f.fail(err)
			}
		})
	}
	ended := make(chan error, 1)
	go func() {
		lines.Scan()
		ended <- lines.Err()
	}()
	var err error
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case err = <-ended:
	}
	stop()
	agents.Wait()
	if err != nil {
		return err
	}
	report, err := json.Marshal(f.summary())
	return errors.Join(err, f.write(string(report)))
}

// fleet is the agents of a process. Its methods are safe for concurrent use.
type fleet struct {
	Options
	calls, connecting chan struct{} // one element for each open call, and for each handshake
	members           []*member
	report            Report // AgentKiB and Error; the counters are below

	requests, refused, unreachable, failed atomic.Int64

	mu  sync.Mutex // guards out and report.Error
	out io.Writer
}

// member is the agent of one device.
type member struct {
	fleet  *fleet
	number int
	dir    *enroll.Directory
	agent  *enroll.Agent
	client *enroll.Client
	began  atomic.Bool // it has made a request

	connected func() // frees the slot of the handshake of the call in progress; an agent makes one call at a time
}

func (f *fleet) write(line string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := fmt.Fprintln(f.out, line)
	return err
}

func (f *fleet) fail(err error) {
	f.failed.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Error = err.Error()
}

// open makes all agents from their directories, and measures how much memory they take.
func (f *fleet) open(ctx context.Context) error {
	before, err := resident()
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	f.members = make([]*member, f.Agents)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range f.members {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			m := &member{fleet: f, number: f.First + i}
			f.members[i] = m
			return m.open(f.Options, log)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	runtime.GC()
	after, err := resident()
	f.report.AgentKiB = (after - before) / float64(max(1, f.Agents))
	return err
}

func (m *member) open(o Options, log *slog.Logger) (err error) {
	if m.dir, err = enroll.OpenDirectory(directoryOf(o.Dir, m.number), log); err != nil {
		return err
	}
	if m.client, err = enroll.NewClient(""); err != nil {
		return err
	}
	// A server limits what one address has open, and devices have addresses of their own.
	own := binary.BigEndian.AppendUint32(nil, 127<<24+1<<16+uint32(m.number)) //nolint:gosec // at most MaxAgents
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: own}}
	m.client.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return &connection{Conn: conn, connected: m.connected}, nil
	}
	m.agent, err = enroll.NewAgent(enroll.Config{Directory: m.dir, Authority: m, Lifetime: o.Lifetime, Log: log})
	if err == nil && m.agent.Pair() == nil { // NewAgent only logs why
		_, err = m.dir.Load()
		err = errors.Join(fmt.Errorf("device %d has no credential", m.number), err)
	}
	return err
}

func (f *fleet) close() {
	for _, m := range f.members {
		if m != nil && m.dir != nil {
			_ = m.dir.Close() // the directory is removed next
		}
	}
}

func (f *fleet) summary() Report {
	r := f.report
	r.Agents = f.Agents
	r.Calls, r.Refused, r.Unreachable, r.Failed = f.requests.Load(), f.refused.Load(), f.unreachable.Load(), f.failed.Load()
	now := time.Now()
	for _, m := range f.members {
		if p := m.agent.Pair(); p == nil || p.Expired(now) {
			r.Invalid++
		}
	}
	return r
}

// take takes a slot. Only the end of the agent ends the wait.
func take(ctx context.Context, slots chan<- struct{}) error {
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return context.Cause(ctx) // the agent stops
		}
		slots <- struct{}{}
	}
	return nil
}

// call makes one call of an agent when the process may have another one open. The agent's timeout begins then: a device
// does not wait for the processors of others.
func (m *member) call(ctx context.Context, do func(context.Context) error) error {
	deadline, limited := ctx.Deadline()
	timeout := time.Until(deadline)
	f := m.fleet
	if err := take(ctx, f.calls); err != nil {
		return err
	}
	defer func() { <-f.calls }()
	if err := take(ctx, f.connecting); err != nil {
		return err
	}
	m.connected = sync.OnceFunc(func() { <-f.connecting })
	defer m.connected()
	if !limited {
		return do(ctx)
	}
	called, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel() // the agent stops
		}
	})()
	return do(called)
}

// connection is a connection of an agent. Its TLS handshake ends for the agent with the second message that it writes (RFC
// 8446 section 2). The slot of the handshake is then free for another agent.
type connection struct {
	net.Conn
	connected func()
	messages  int
}

// Write implements net.Conn.
func (c *connection) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if c.messages++; c.messages == 2 {
		c.connected()
	}
	return n, err
}

// request makes a request for a certificate, and records its result.
func (m *member) request(ctx context.Context, do func(context.Context) (enroll.Credential, error)) (c enroll.Credential, err error) {
	f := m.fleet
	f.requests.Add(1)
	err = m.call(ctx, func(ctx context.Context) error {
		if !m.began.Swap(true) {
			if err := f.write(Event{m.number, time.Now(), false}.String()); err != nil {
				return err
			}
		}
		c, err = do(ctx)
		return err
	})
	_, refusal := pki.AsRefusal(err)
	switch {
	case err == nil:
		return c, f.write(Event{m.number, time.Now(), true}.String())
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
	case refusal && pki.IsTemporary(err):
		f.refused.Add(1)
	case pki.IsTemporary(err):
		f.unreachable.Add(1)
	default:
		f.fail(err)
	}
	return c, err
}

// Enroll implements enroll.Authority.
func (m *member) Enroll(ctx context.Context, r enroll.EnrollRequest) (enroll.Credential, error) {
	return m.request(ctx, func(ctx context.Context) (enroll.Credential, error) { return m.client.Enroll(ctx, r) })
}

// Renew implements enroll.Authority.
func (m *member) Renew(ctx context.Context, r enroll.RenewRequest) (enroll.Credential, error) {
	return m.request(ctx, func(ctx context.Context) (enroll.Credential, error) { return m.client.Renew(ctx, r) })
}

// RenewalInfo implements enroll.Authority.
func (m *member) RenewalInfo(ctx context.Context, p *enroll.Pair) (info enroll.RenewalInfo, err error) {
	err = m.call(ctx, func(ctx context.Context) error { info, err = m.client.RenewalInfo(ctx, p); return err })
	return info, err
}

// TrustBundle implements enroll.Authority.
func (m *member) TrustBundle(ctx context.Context, p *enroll.Pair) (bundle enroll.TrustBundle, err error) {
	err = m.call(ctx, func(ctx context.Context) error { bundle, err = m.client.TrustBundle(ctx, p); return err })
	return bundle, err
}

// resident returns the resident memory of this process in KiB (proc(5), statm).
func resident() (float64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, pages float64
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %w", err)
	}
	return pages * float64(os.Getpagesize()) / 1024, nil
}
