package torture

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

// agentOptions configures an agent process.
type agentOptions struct{ Dir, Server string }

// runAgent prints its process ID, enrolls with every token from standard input, and prints the serial number of the
// credential after each.
func runAgent() error {
	var o agentOptions
	if err := json.Unmarshal([]byte(os.Getenv(optionsEnv)), &o); err != nil {
		return err
	}
	fmt.Println(os.Getpid())
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	client, err := enroll.NewClient(o.Server)
	if err != nil {
		return err
	}
	dir, err := enroll.OpenDirectory(o.Dir, log)
	if err != nil {
		return err
	}
	agent, err := enroll.NewAgent(enroll.Config{Directory: dir, Authority: client, Log: log})
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		token, err := enroll.ParseToken(lines.Text())
		if err != nil {
			return err
		}
		// Like "brevet-agent enroll": do not use the token with which the credential was enrolled.
		if p := agent.Pair(); p == nil || p.Origin.Token != token.Secret.ID().String() {
			if err := enrollPersistently(context.Background(), agent, token); err != nil {
				return err
			}
		}
		fmt.Println(agent.Pair().Serial())
	}
	return dir.Close()
}

// enrollPersistently enrolls, and repeats that when the server, some of whose writes fail, asks for it.
func enrollPersistently(ctx context.Context, a *enroll.Agent, token enroll.Token) error {
	for {
		err := a.Enroll(ctx, token)
		if err == nil || !pki.IsTemporary(err) {
			return err
		}
		time.Sleep(pki.RetryAfter(err))
	}
}

// agentCalls lists the system calls before which strace kills an agent.
var agentCalls = []string{"fsync", "?rename,renameat,renameat2", "?unlink,unlinkat", "?symlink,symlinkat", "?mkdir,mkdirat", "write"}

// An agentTest runs many agent processes, one after the other, on one directory.
type agentTest struct {
	*crashTest
	dir, id         string
	disk            recorder
	token           string // the token in use; empty before the next one is created
	reported        string // the last serial number that the agent printed
	killedBySyscall int    // number of processes that strace killed at the injected system call
}

// run starts the agent, passes tokens to it until it has used three or dies, kills it, and cuts the power. If the agent
// exits by itself, run returns an error, because the files that the agent needs are missing or damaged.
func (a *agentTest) run(t *testing.T, c powerCut) error {
	t.Helper()
	a.disk.inject = fmt.Sprintf("%s:%d", agentCalls[a.random.IntN(len(agentCalls))], 1+a.random.IntN(8))
	p := command(t, append(a.disk.begin(t, a.dir), os.Args[0]), "agent", agentOptions{a.dir, a.server.grpc})
	output := bufio.NewReader(p.out(t))
	first, _ := output.ReadString('\n')
	_, _ = fmt.Sscan(first, &p.pid)
	used := 0
	for ; used < 3; used++ {
		if a.token == "" {
			var err error
			a.token, err = a.clients.createToken(t.Context(), a.id, a.reported != "")
			must(t, err)
		}
		_, _ = io.WriteString(p.stdin, a.token+"\n") // ignore errors: the agent may be dead
		line, err := output.ReadString('\n')
		if err != nil {
			break
		}
		a.token, a.reported = "", strings.TrimSpace(line)
	}
	if used < 3 {
		a.killedBySyscall++
	}
	go func() { p.err = p.cmd.Wait(); close(p.ended) }()
	p.kill()
	if !killed(p.err) {
		return fmt.Errorf("the agent exited by itself: %w\n%s", p.err, p.stderr.String())
	}
	a.disk.cutPower(t, c)
	return nil
}

// checkCredential compares the credential on the disk with the serial number that the agent reported last. A credential
// for the token in use is also correct.
func (a *agentTest) checkCredential() error {
	p, err := enroll.ReadPair(a.dir)
	switch {
	case errors.Is(err, enroll.ErrNoCredential) && a.reported == "":
		return nil
	case err != nil:
		return err
	case p.Serial() == a.reported:
		return nil
	}
	if token, err := enroll.ParseToken(a.token); err == nil && p.Origin.Token == token.Secret.ID().String() {
		return nil
	}
	return fmt.Errorf("the agent reported the certificate %s, and its directory has %s", a.reported, p.Serial())
}

func newAgentTest(t *testing.T, g *testCA, random *rand.Rand) *agentTest {
	t.Helper()
	a := &agentTest{crashTest: newCrashTest(t, g, random, "", nil, mixedLoad), dir: t.TempDir()}
	var err error
	a.id, err = a.clients.register(t.Context(), "device/agent")
	must(t, err)
	return a
}

// powerCutsOfAnAgent cuts the power before system calls of an agent. enroll/powerloss_test.go does the same on a model
// of a disk.
func powerCutsOfAnAgent(t *testing.T, g *testCA, random *rand.Rand) {
	a := newAgentTest(t, g, random)
	end := time.Now().Add(*long)
	n := 0
	for ; n < 6 || time.Now().Before(end); n++ {
		c := randomCut(a.random)
		must(t, a.run(t, c))
		if err := a.checkCredential(); err != nil {
			t.Fatalf("process %d, killed before %s, %s: %v", n, a.disk.inject, c, err)
		}
	}
	if faults := a.checkFiles(t); len(faults) > 0 {
		t.Error(report(faults))
	}
	t.Logf("%d processes, %d of them killed at a system call", n, a.killedBySyscall)
	if a.killedBySyscall == 0 {
		t.Error("strace killed no agent at a system call")
	}
}

func flushlessDiskUnderAnAgentIsFound(t *testing.T, g *testCA, random *rand.Rand) {
	a := newAgentTest(t, g, random)
	for range 20 {
		if err := cmp.Or(a.run(t, powerCut{random: childRand(a.random), ignoreFlush: true}), a.checkCredential()); err != nil {
			t.Logf("found: %v", err)
			return
		}
	}
	t.Error("a disk that ignores flushes was not found in 20 power cuts")
}
