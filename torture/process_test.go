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

// patience bounds what should take a moment: nothing is decided by it, except that something hangs.
const patience = time.Minute

// world is a CA under torture: its files, and all that is known of it from outside.
type world struct {
	*ground
	dir, token string
	book       *book
	witness    *witness
	clients    *clients
	plant      string                          // the fault that its servers have
	lists      map[string]*x509.RevocationList // that were published when it was looked at last
	recorder   *recorder                       // under which its servers run; nil for none
}

func newWorld(t *testing.T, g *ground) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{ground: g, dir: dir + "/files", token: dir + "/token", book: newBook(), witness: newWitness(t), clients: newClients(g)}
	must(t, copyTree(g.files, w.dir))
	return w
}

// process is a server, or what strace makes of it.
type process struct {
	cmd        *exec.Cmd
	pid        int // of the server
	stdin      io.WriteCloser
	stderr     strings.Builder
	ended      chan struct{}
	err        error  // of the process; after ended
	grpc, http string // addresses
	operator   string // token
}

// launch starts a server and returns it once it serves, or nil where it has died as it was told to. Any other end is an error.
func (w *world) launch(t *testing.T, o orders) (*process, error) {
	t.Helper()
	if w.token != w.ground.token {
		// SoftHSM writes its token anew at every login, in place: a kill just then leaves it empty (README.md).
		must(t, copyTree(w.ground.token, w.token))
	}
	o.Dir, o.Token, o.Witness, o.Plant = w.dir, w.token, w.witness.path, w.plant
	argv := []string{os.Args[0]}
	if w.recorder != nil {
		argv = append(w.recorder.begin(t, w.dir), argv...)
	}
	p := command(t, argv, "server", o)
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
	if n, _ := fmt.Sscan(second, &p.grpc, &p.http, &p.operator); n == 3 {
		return p, nil
	}
	p.await(t)
	if !killed(p.err) || o.Kill.N == 0 && (w.recorder == nil || w.recorder.inject == "") {
		return nil, fmt.Errorf("the server does not start: %w\n%s", p.err, p.stderr.String())
	}
	return nil, nil
}

// start starts a server that nothing kills.
func (w *world) start(t *testing.T, o orders) *process {
	t.Helper()
	p, err := w.launch(t, o)
	must(t, err)
	return p
}

// command is the test program in another role.
func command(t *testing.T, argv []string, role string, o any) *process {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+role, ordersEnv+"="+string(text))
	p.cmd.Stderr = &p.stderr
	p.stdin, err = p.cmd.StdinPipe()
	must(t, err)
	return p
}

// out starts the process, and returns what it says.
func (p *process) out(t *testing.T) io.Reader {
	t.Helper()
	out, err := p.cmd.StdoutPipe()
	must(t, err)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%v: run deploy/setup.sh --test", err)
	}
	return out
}

// arm has the process die at a step.
func (p *process) arm(k kill) { _ = json.NewEncoder(p.stdin).Encode(k) } // it may be dead already

// kill ends the server with SIGKILL, if it lives, and waits until it is gone.
func (p *process) kill() {
	select {
	case <-p.ended:
		return
	default:
	}
	if p.pid > 0 {
		_ = syscall.Kill(p.pid, syscall.SIGKILL) // not strace, which has lines to write
	} else {
		_ = p.cmd.Process.Kill()
	}
	<-p.ended
}

// stop ends the server as a service manager does.
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
	case <-time.After(patience):
		t.Fatalf("the server does not end\n%s", p.stderr.String())
	}
}

// killed reports whether a process died of SIGKILL. strace dies as what it follows did.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && (status.Signaled() && status.Signal() == syscall.SIGKILL || status.ExitStatus() == 128+int(syscall.SIGKILL))
}
