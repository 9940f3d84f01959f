package torture

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hangTimeout bounds operations that take less than a few seconds. A test that reaches it reports a hang.
const hangTimeout = time.Minute

// An instance is a CA under test: its files, and what the test observes of its servers.
type instance struct {
	*testCA
	dir, hsm      string // of its only server, if the store is not on PostgreSQL
	database      string // connection string of the store; "" for SQLite
	observed      *observations
	signatures    *signatureLog
	clients       *clients
	bug           string                          // the seeded bug of its servers
	publishedCRLs map[string]*x509.RevocationList // by path, as of the last check
	recorder      *recorder                       // runs its servers under strace; nil for none
	rotations     rotationObservations
	acme          *acmeWorld    // its ACME clients and what they observe
	staleness     time.Duration // how long one server may not know what another one has confirmed
}

func newInstance(t *testing.T, g *testCA) *instance {
	t.Helper()
	dir := t.TempDir()
	w := &instance{testCA: g, dir: dir + "/files", hsm: dir + "/hsm", observed: newObservations(), signatures: newSignatureLog(t), clients: newClients(g)}
	w.acme = newACMEWorld(t, w)
	must(t, copyTree(g.files, w.dir))
	return w
}

// A process is a server or agent, possibly run by strace.
type process struct {
	cmd      *exec.Cmd
	pid      int // of the server or agent, not of strace
	stdin    io.WriteCloser
	stderr   strings.Builder
	ended    chan struct{}
	err      error  // of the process; valid after ended is closed
	operator string // text of the operator's token
	server   string // name of the server, if there are several; constant while its processes change

	grpc, https, http string // addresses it listens on

}

// launch starts a server and returns it once it serves. If the server dies at its kill point, launch returns nil. If it
// ends in another way, launch returns an error.
func (w *instance) launch(t *testing.T, o serverOptions) (*process, error) {
	t.Helper()
	if o.Dir == "" {
		o.Dir, o.HSM = w.dir, w.hsm
	}
	if o.HSM != w.testCA.hsm {
		// SoftHSM rewrites its files in place at every login. A kill at that moment leaves them empty (README.md), so
		// each server gets a new copy.
		must(t, copyTree(w.testCA.hsm, o.HSM))
	}
	o.SignatureSocket, o.Bug = w.signatures.path, w.bug
	if w.acme != nil {
		o.ChallengePort = w.acme.port
	}
	argv := []string{os.Args[0]}
	if w.recorder != nil {
		argv = append(w.recorder.begin(t, w.dir), argv...)
	}
	p := command(t, argv, "server", o)
	p.server = o.Name
	lines := bufio.NewReader(p.out(t))
	first, _ := lines.ReadString('\n')
	_, _ = fmt.Sscan(first, &p.pid)
	second, _ := lines.ReadString('\n')
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	if n, _ := fmt.Sscan(second, &p.grpc, &p.https, &p.http, &p.operator); n == 4 {
		return p, nil
	}
	p.await(t)
	if !killed(p.err) || o.KillAt.N == 0 && (w.recorder == nil || w.recorder.inject == "") {
		return nil, fmt.Errorf("the server does not start: %w\n%s", p.err, p.stderr.String())
	}
	return nil, nil
}

// start starts a server without a kill point.
func (w *instance) start(t *testing.T, o serverOptions) *process {
	t.Helper()
	p, err := w.launch(t, o)
	must(t, err)
	return p
}

// command returns a process that runs the test program as a server or agent.
func command(t *testing.T, argv []string, role string, o any) *process {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+role, optionsEnv+"="+string(text))
	p.cmd.Stderr = &p.stderr
	p.stdin, err = p.cmd.StdinPipe()
	must(t, err)
	return p
}

// out starts the process and returns its standard output.
func (p *process) out(t *testing.T) io.Reader {
	t.Helper()
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	return out
}

// arm has the process kill itself at k.
func (p *process) arm(k killPoint) { _ = json.NewEncoder(p.stdin).Encode(k) } // ignore errors: the process may be dead

// kill sends SIGKILL to the server if it runs, and waits until it has ended.
func (p *process) kill() {
	select {
	case <-p.ended:
		return
	default:
	}
	if p.pid > 0 {
		_ = syscall.Kill(p.pid, syscall.SIGKILL) // not strace, which must still write its lines
	} else {
		_ = p.cmd.Process.Kill()
	}
	<-p.ended
}

// standsStill reports whether the process has stopped by SIGSTOP (proc_pid_stat(5)).
func (p *process) standsStill() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.HasPrefix(state, "T")
}

// stop ends the server as a service manager does, and checks that it ends without error.
func (p *process) stop(t *testing.T) {
	t.Helper()
	must(t, p.stdin.Close())
	p.await(t)
	if p.err != nil {
		t.Fatalf("the server ended with %v\n%s", p.err, p.stderr.String())
	}
}

func (p *process) await(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(hangTimeout):
		t.Fatalf("the server does not end\n%s", p.stderr.String())
	}
}

// killed reports whether a process died of SIGKILL. strace ends by the same signal as its child.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && (status.Signaled() && status.Signal() == syscall.SIGKILL || status.ExitStatus() == 128+int(syscall.SIGKILL))
}
