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
)

// agentOrders is what an agent process is told.
type agentOrders struct{ Dir, Server string }

// runAgent says its process ID, enrolls with every token that comes on standard input, and says which serial number the
// credential then has.
func runAgent() error {
	var o agentOrders
	if err := json.Unmarshal([]byte(os.Getenv(ordersEnv)), &o); err != nil {
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
		// As brevet-agent enroll does: a token that the credential came from is spent.
		if p := agent.Pair(); p == nil || p.Origin.Token != token.Secret.ID().String() {
			if err := agent.Enroll(context.Background(), token); err != nil {
				return err
			}
		}
		fmt.Println(agent.Pair().Serial())
	}
	return dir.Close()
}

// agentCalls are the system calls before which strace kills an agent.
var agentCalls = []string{"fsync", "?rename,renameat,renameat2", "?unlink,unlinkat", "?symlink,symlinkat", "?mkdir,mkdirat", "write"}

// patient is an agent through many lives, and what it has said.
type patient struct {
	*torture
	dir, id string
	disk    recorder
	token   string // that is being spent; empty between two
	told    string // the serial number that it said last
	early   int    // lives that ended where strace was to end them
}

// life starts the agent, has it spend tokens until it dies or is killed, and cuts the power. An agent that ends by itself
// has not found on its disk what it needs.
func (a *patient) life(t *testing.T, c cut) error {
	t.Helper()
	a.disk.inject = fmt.Sprintf("%s:%d", agentCalls[a.random.IntN(len(agentCalls))], 1+a.random.IntN(8))
	p := command(t, append(a.disk.begin(t, a.dir), os.Args[0]), "agent", agentOrders{a.dir, a.server.grpc})
	said := bufio.NewReader(p.out(t))
	first, _ := said.ReadString('\n')
	_, _ = fmt.Sscan(first, &p.pid)
	answers := 0
	for ; answers < 3; answers++ {
		if a.token == "" {
			var err error
			a.token, err = a.clients.makeToken(t.Context(), a.id, a.told != "")
			must(t, err)
		}
		_, _ = io.WriteString(p.stdin, a.token+"\n") // it may be dead
		line, err := said.ReadString('\n')
		if err != nil {
			break
		}
		a.token, a.told = "", strings.TrimSpace(line)
	}
	if answers < 3 {
		a.early++
	}
	go func() { p.err = p.cmd.Wait(); close(p.ended) }()
	p.kill()
	if !killed(p.err) {
		return fmt.Errorf("the agent ended by itself: %w\n%s", p.err, p.stderr.String())
	}
	a.disk.power(t, c)
	return nil
}

// holds returns what is wrong with the credential on the disk: it is what the agent said last, or what the token that it
// is spending gave.
func (a *patient) holds() error {
	p, err := enroll.ReadPair(a.dir)
	switch {
	case errors.Is(err, enroll.ErrNoCredential) && a.told == "":
		return nil
	case err != nil:
		return err
	case p.Serial() == a.told:
		return nil
	}
	if token, err := enroll.ParseToken(a.token); err == nil && p.Origin.Token == token.Secret.ID().String() {
		return nil
	}
	return fmt.Errorf("the agent said that it holds %s, and holds %s", a.told, p.Serial())
}

func newPatient(t *testing.T, g *ground, random *rand.Rand) *patient {
	t.Helper()
	a := &patient{torture: newTorture(t, g, random, "", nil), dir: t.TempDir()}
	var err error
	a.id, err = a.clients.register(t.Context(), "device/patient")
	must(t, err)
	return a
}

// powerCutsOfAnAgent is what enroll/powerloss_test.go does to the agent's own idea of a disk, with what the kernel is asked.
func powerCutsOfAnAgent(t *testing.T, g *ground, random *rand.Rand) {
	a := newPatient(t, g, random)
	end := time.Now().Add(*long)
	n := 0
	for ; n < 6 || time.Now().Before(end); n++ {
		c := drawnCut(a.random)
		must(t, a.life(t, c))
		if err := a.holds(); err != nil {
			t.Fatalf("life %d, killed before %s, %s: %v", n, a.disk.inject, c, err)
		}
	}
	if faults := a.look(t); len(faults) > 0 {
		t.Error(report(faults))
	}
	t.Logf("%d lives, of which a system call ended %d", n, a.early)
	if a.early == 0 {
		t.Error("strace has killed nobody")
	}
}

func lyingDiskUnderAnAgentIsFound(t *testing.T, g *ground, random *rand.Rand) {
	a := newPatient(t, g, random)
	for range 20 {
		if err := cmp.Or(a.life(t, cut{random: child(a.random), lies: true}), a.holds()); err != nil {
			t.Logf("found: %v", err)
			return
		}
	}
	t.Error("nothing was found")
}
