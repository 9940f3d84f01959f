// Package clitest runs test scripts with the real binaries.
package clitest

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // driver for the script command sql
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/brevet-pki/brevet/hsm"
	"github.com/brevet-pki/brevet/internal/cli/devca"
)

// waitTimeout is the timeout of every wait in a script. Only a program that hangs reaches it.
const waitTimeout = 90 * time.Second

// scriptPIN is the PIN of every HSM in the scripts. It must not appear in any output.
const scriptPIN = "pin-that-must-not-show"

// Run runs the scripts in testdata. Each script has its own SoftHSM and PIN files. $GRPC, $HTTP, $HTTPS and $OPERATIONS are
// addresses with free ports, and $GRPC2 and $HTTP2 those of a second server. Run replaces these variables, $WORK and $PORT
// in the script's .yaml files. binaries names the packages in cmd that the scripts call, in addition to the binary under
// test.
func Run(t *testing.T, binaries ...string) {
	t.Helper()
	RunWith(t, nil, binaries...)
}

// RunWith is Run with more script commands.
func RunWith(t *testing.T, commands map[string]func(*testscript.TestScript, bool, []string), binaries ...string) {
	t.Helper()
	for _, tool := range []string{"openssl", "curl", "pkcs11-tool", "age"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: run deploy/setup.sh --test", err)
		}
	}
	bin := t.TempDir()
	Build(t, bin, binaries...)
	all := map[string]func(*testscript.TestScript, bool, []string){
		"ceremony": ceremonyOnce, "fails": fails, "start": start, "halt": halt, "eventually": eventually, "await": await, "json": jsonLines,
		"disk": disk, "alter": alter, "sql": sqlCommand, "notified": notified, "agekey": ageKey,
	}
	maps.Copy(all, commands)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               func(e *testscript.Env) error { return prepare(e, bin) },
		Cmds:                all,
		Condition:           holds,
	})
}

// holds implements the condition [root]: the script may mount file systems.
func holds(condition string) (bool, error) {
	if condition != "root" {
		return false, fmt.Errorf("there is no condition %q", condition)
	}
	return os.Geteuid() == 0, nil
}

// Build builds packages of cmd, and writes the binaries to a directory.
func Build(t *testing.T, dir string, binaries ...string) {
	t.Helper()
	args := []string{"build", "-buildvcs=false", "-o", dir + string(filepath.Separator)}
	for _, name := range binaries {
		args = append(args, "github.com/brevet-pki/brevet/cmd/"+name)
	}
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}

func prepare(e *testscript.Env, bin string) error {
	e.Values[backgroundKey{}] = make(map[string]*running)
	ctx, cancel := context.WithCancel(context.Background())
	e.Defer(cancel) // releases the addresses
	addresses, err := devca.FreeAddresses(ctx, 6)
	if err != nil {
		return err
	}
	grpc, http, https := addresses[0], addresses[1], addresses[2]
	module, err := hsm.FindSoftHSM()
	if err != nil {
		return err
	}
	e.Setenv("PKCS11", module)
	conf, err := hsm.WriteSoftHSM(filepath.Join(e.WorkDir, "softhsm"))
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(grpc)
	if err != nil {
		return err
	}
	e.Vars = append(e.Vars, "GRPC="+grpc, "HTTP="+http, "HTTPS="+https, "PORT="+port, "GRPC2="+addresses[3], "HTTP2="+addresses[4], "OPERATIONS="+addresses[5], "LC_ALL=C",
		"XDG_STATE_HOME="+filepath.Join(e.WorkDir, "state"), "XDG_CONFIG_HOME="+filepath.Join(e.WorkDir, "settings"), hsm.SoftHSMConfEnv+"="+conf)
	e.Setenv("PATH", os.Getenv("PATH")+string(filepath.ListSeparator)+bin)
	configs, err := filepath.Glob(filepath.Join(e.WorkDir, "*.yaml"))
	if err != nil {
		return err
	}
	for _, path := range configs {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(os.Expand(string(text), e.Getenv)), 0o600); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile(filepath.Join(e.WorkDir, "pin"), []byte(scriptPIN+"\n"), 0o600),
		os.WriteFile(filepath.Join(e.WorkDir, "so-pin"), []byte("so-"+scriptPIN), 0o600))
}

// ceremonyOnce creates a root and an issuing CA in one HSM, and writes root.crt, root.crl and issuing.crt. It installs
// the CAs with brevet.yaml, and writes a token for the operator alice to alice.token.
func ceremonyOnce(ts *testscript.TestScript, _ bool, _ []string) {
	const hsm = "--hsm-label ca --pin-file pin "
	for _, line := range []string{
		"hsm init --hsm-label ca --pin-file pin --so-pin-file so-pin",
		"ceremony root " + hsm + "--key-label root-g1 --subject CN=Root-G1 --key-type P-256",
		"ceremony intermediate request " + hsm + "--key-label issuing-g1 --subject CN=Issuing-G1",
		"ceremony sign " + hsm + "--key-label root-g1 --csr issuing.csr --trust-domain fleet.example --public-url http://" + ts.Getenv("HTTP"),
		"ceremony crl " + hsm + "--key-label root-g1",
		"ceremony install --config brevet.yaml --key-label issuing-g1 --operator alice --out alice.token",
	} {
		ts.Check(ts.Exec("brevet", strings.Fields(line)...))
	}
}

// fails CODE COMMAND… checks that a command fails with an exit code, and prints exactly one line with the reason.
func fails(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		ts.Fatalf("%q: %v, and should end with exit code %s", args[1:], err, args[0])
	}
	if args[0] != strconv.Itoa(exit.ExitCode()) {
		ts.Fatalf("%q: exit code %d, want %s", args[1:], exit.ExitCode(), args[0])
	}
	output := ts.ReadFile("stderr")
	if len(failureLine.FindAllString(output, -1)) != 1 {
		ts.Fatalf("%q does not say in one line why", args[1:])
	}
	checkOutput(ts, ts.ReadFile("stdout")+output)
}

// failureLine matches the line with which a binary reports why it failed.
var failureLine = regexp.MustCompile(`(?m)^brevet(-\w+)?: `)

var unprintable = regexp.MustCompile(scriptPIN + `|brevet1\.[\w-]{20}|goroutine \d|panic:`)

// checkOutput fails the script if an output contains a secret or a stack trace.
func checkOutput(ts *testscript.TestScript, output string) {
	if found := unprintable.FindString(output); found != "" {
		ts.Fatalf("the output shows %q", found)
	}
}

// running is a background command of a script.
type running struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // result of Wait; read it only after ended is closed
}

// start LOG PATTERN COMMAND… starts a command that writes its output to LOG, and waits until the output matches the
// pattern.
func start(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	path := find(ts, args[2])
	r := &running{cmd: exec.Command(path, args[3:]...), ended: make(chan struct{})}
	// The command writes to a pipe and the test process to the file. The command can therefore report that the disk is
	// full.
	r.cmd.Stdout, r.cmd.Stderr = struct{ io.Writer }{f}, struct{ io.Writer }{f}
	r.cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME", hsm.SoftHSMConfEnv} {
		r.cmd.Env = append(r.cmd.Env, name+"="+ts.Getenv(name))
	}
	ts.Check(r.cmd.Start())
	go func() {
		r.err = errors.Join(r.cmd.Wait(), f.Close())
		close(r.ended)
	}()
	ts.Defer(func() {
		_ = r.cmd.Process.Kill() // fails if the command has already ended
		<-r.ended
	})
	background(ts)[args[0]] = r
	if args[1] == "" {
		return
	}
	pattern := regexp.MustCompile(args[1])
	until(ts, 10*time.Millisecond, "the output "+args[0]+" does not match "+args[1], func() bool {
		matches := pattern.MatchString(ts.ReadFile(args[0]))
		select {
		case <-r.ended:
			if !matches {
				ts.Fatalf("%q ended (%v):\n%s", args[2:], r.err, ts.ReadFile(args[0]))
			}
		default:
		}
		return matches
	})
}

// find returns the path of a program in the script's PATH. The PATH of the test process does not contain the binaries.
func find(ts *testscript.TestScript, name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	ts.Fatalf("%s is not in the script's PATH", name)
	return ""
}

type backgroundKey struct{}

// background returns the started commands of a script, by the names of their log files.
func background(ts *testscript.TestScript) map[string]*running {
	return ts.Value(backgroundKey{}).(map[string]*running)
}

// halt LOG SIGNAL CODE sends a signal to a command, waits for its end, and checks its exit code: -1 if the signal
// killed it.
func halt(ts *testscript.TestScript, _ bool, args []string) {
	r := background(ts)[args[0]]
	// Signal returns an error if the command has already ended.
	ts.Check(r.cmd.Process.Signal(unix.SignalNum("SIG" + args[1])))
	select {
	case <-r.ended:
	case <-time.After(waitTimeout):
		ts.Fatalf("%s does not end by SIG%s", r.cmd, args[1])
	}
	output := ts.ReadFile(args[0])
	if got := r.cmd.ProcessState.ExitCode(); args[2] != strconv.Itoa(got) {
		ts.Fatalf("%s: exit code %d, want %s:\n%s", r.cmd, got, args[2], output)
	}
	checkOutput(ts, output)
}

func until(ts *testscript.TestScript, every time.Duration, failure string, holds func() bool) {
	for deadline := time.Now().Add(waitTimeout); !holds(); time.Sleep(every) {
		if time.Now().After(deadline) {
			ts.Fatalf("%s", failure)
		}
	}
}

// eventually runs a command until it succeeds. "! eventually" runs it until it fails.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	until(ts, 50*time.Millisecond, fmt.Sprintf("waited in vain for %q", args), func() bool { return (ts.Exec(args[0], args[1:]...) == nil) != neg })
}

// await PATTERN waits until a file exists. It looks every millisecond, so that the next command follows at once.
func await(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, time.Millisecond, "there comes no "+args[0], func() bool {
		found, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		return len(found) > 0
	})
}

// jsonLines N checks that the last output consists of N lines with a JSON object each.
func jsonLines(ts *testscript.TestScript, _ bool, args []string) {
	n := 0
	for lines := bufio.NewScanner(strings.NewReader(ts.ReadFile("stdout"))); lines.Scan(); n++ {
		var object map[string]any
		if err := json.Unmarshal(lines.Bytes(), &object); err != nil {
			ts.Fatalf("%v: %s", err, lines.Text())
		}
	}
	if args[0] != strconv.Itoa(n) {
		ts.Fatalf("%d records, want %s", n, args[0])
	}
}

// disk LOG full|free makes every write to a file fail for a running command, or succeed again.
func disk(ts *testscript.TestScript, _ bool, args []string) {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if args[1] == "full" {
		limit.Cur = 0
	}
	ts.Check(unix.Prlimit(background(ts)[args[0]].cmd.Process.Pid, syscall.RLIMIT_FSIZE, &limit, nil))
}

// sqlCommand FILE STATEMENT executes a statement on an SQLite file.
func sqlCommand(ts *testscript.TestScript, _ bool, args []string) {
	db, err := sql.Open("sqlite3", ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = db.Exec(args[1])
	ts.Check(errors.Join(err, db.Close()))
}

// alter FILE FROM TO removes the bytes of a file from FROM up to, but not including, TO. If both are equal, it changes
// one bit of the byte at FROM. Negative offsets count from the end.
func alter(ts *testscript.TestScript, _ bool, args []string) {
	content := []byte(ts.ReadFile(args[0]))
	offset := func(text string) int {
		n, err := strconv.Atoi(text)
		ts.Check(err)
		if n < 0 {
			n += len(content)
		}
		if n < 0 || n >= len(content) {
			ts.Fatalf("%s has %d bytes, and none at %s", args[0], len(content), text)
		}
		return n
	}
	from, to := offset(args[1]), offset(args[2])
	if from == to {
		content[from] ^= 1
	} else {
		content = append(content[:from:from], content[to:]...)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), content, 0o600))
}

// notified SOCKET FILE receives notifications for systemd at a socket, and writes each to a line of a file.
func notified(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ts.MkAbs(args[0]), Net: "unixgram"})
	ts.Check(err)
	ended := make(chan struct{})
	ts.Defer(func() { _ = socket.Close(); <-ended; _ = f.Close() })
	go func() {
		defer close(ended)
		for message := make([]byte, 1000); ; {
			n, err := socket.Read(message)
			if err != nil {
				return
			}
			fmt.Fprintf(f, "%s\n", message[:n])
		}
	}()
}
