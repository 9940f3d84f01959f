package torture

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"

	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// history is what the clients of one identity did, in the form of both models.
type history struct {
	w     *world
	id    string
	began time.Time

	mu       sync.Mutex
	orders   int
	ledger   []porcupine.Operation
	subjects []porcupine.Operation // of all certificates
	holders  []*holder
	lost     []*process // by operation of the ledger: the server that did not answer it; nil where one did
	lostSaid []*process // the same for subjects
}

func (h *history) now() int64 { return time.Since(h.began).Nanoseconds() }

// add takes an operation down. A lost one ends with its process, or never.
func (h *history) add(ops *[]porcupine.Operation, lost *[]*process, client int, in input, out output, call int64, p *process) {
	op := porcupine.Operation{ClientId: client, Input: in, Output: out, Call: call, Return: h.now()}
	if !out.lost {
		p = nil
	}
	*ops, *lost = append(*ops, op), append(*lost, p)
}

// record takes a call down in the models that it is an operation of.
func (h *history) record(client int, in input, out output, call int64, p *process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.verb != asks {
		h.add(&h.ledger, &h.lost, client, in, out, call, p)
	}
	switch in.verb {
	case asks:
		h.add(&h.subjects, &h.lostSaid, client, in, out, call, p)
	case suspends, resumes, revokes:
		if out.rule == "" {
			h.add(&h.subjects, &h.lostSaid, client, in, out, call, p)
			h.add(&h.subjects, &h.lostSaid, client, input{verb: tells, serial: in.serial, order: in.order}, out, call, p)
		}
	case enrolls, renews:
		if out.got != "" {
			h.add(&h.subjects, &h.lostSaid, client, input{verb: in.verb, serial: out.got}, out, call, p)
		}
	}
}

// outcome is what an error says, and fails the test for one that nobody should see.
func (h *history) outcome(err error) output {
	switch {
	case err == nil:
		return output{}
	case passing(err):
		return output{lost: true}
	default:
		if unexpected("call", err) != nil {
			h.w.blame("call", err)
		}
		return output{rule: servertest.RuleOf(err)}
	}
}

// obtain enrolls or renews, again and again until it is answered, or once with hardly any patience.
func (h *history) obtain(ctx context.Context, client int, in input, r *request, hasty bool) {
	call := h.now()
	p, err := h.w.clients.current(ctx)
	if err != nil {
		return
	}
	var der []byte
	if hasty {
		short, cancel := context.WithTimeout(ctx, 8*time.Millisecond)
		defer cancel()
		err = h.w.clients.callTo(short, p, r.renews, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
			der, err = r.ask(ctx, conn)
			return err
		})
	} else {
		der, err = h.w.clients.obtain(ctx, r)
	}
	out := h.outcome(err)
	if err == nil {
		c, err := parseCertificate(der)
		if err != nil {
			h.w.book.faultf("%v", err)
			return
		}
		h.w.book.answered(r, c)
		out.got = serialOf(c)
		defer h.learn(&holder{c, r.key})
	}
	h.record(client, in, out, call, p)
}

func (h *history) learn(known *holder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holders = append(h.holders, known)
}

// any returns a certificate's holder, or nil while there is none.
func (h *history) any(r *rand.Rand) *holder {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.holders) == 0 {
		return nil
	}
	return h.holders[max(0, len(h.holders)-1-r.IntN(3))] // the newest are the most interesting
}

// operate is an operator's call, made once.
func (h *history) operate(ctx context.Context, client int, in input, do func(context.Context, *grpc.ClientConn) (int, error)) {
	call := h.now()
	p, err := h.w.clients.current(ctx)
	if err != nil {
		return
	}
	var state int
	err = h.w.clients.callTo(ctx, p, h.w.operator, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		state, err = do(ctx, conn)
		return err
	})
	out := h.outcome(err)
	out.state = state
	if out.lost && (in.verb == reads || in.verb == looks) {
		return // it says nothing
	}
	h.record(client, in, out, call, p)
}

func (h *history) suspend(ctx context.Context, client int) {
	h.operate(ctx, client, input{verb: suspends, order: h.order()}, func(ctx context.Context, conn *grpc.ClientConn) (int, error) {
		_, err := brevetv1.NewIdentityServiceClient(conn).SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: h.id})
		return 0, err
	})
}

func (h *history) resume(ctx context.Context, client int) {
	h.operate(ctx, client, input{verb: resumes, order: h.order()}, func(ctx context.Context, conn *grpc.ClientConn) (int, error) {
		_, err := brevetv1.NewIdentityServiceClient(conn).ResumeIdentity(ctx, &brevetv1.ResumeIdentityRequest{Id: h.id})
		return 0, err
	})
}

func (h *history) revoke(ctx context.Context, client int, serial string) {
	h.operate(ctx, client, input{verb: revokes, serial: serial, order: h.order()}, func(ctx context.Context, conn *grpc.ClientConn) (int, error) {
		_, err := brevetv1.NewRevocationServiceClient(conn).RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: serialBytes(serial), Reason: servertest.Reason("superseded")})
		return 0, err
	})
}

func (h *history) read(ctx context.Context, client int, serial string) {
	h.operate(ctx, client, input{verb: reads, serial: serial}, func(ctx context.Context, conn *grpc.ClientConn) (int, error) {
		resp, err := brevetv1.NewCertificateServiceClient(conn).GetCertificate(ctx, &brevetv1.GetCertificateRequest{Serial: serialBytes(serial)})
		return int(resp.GetCertificate().GetState()), err
	})
}

func (h *history) look(ctx context.Context, client int) {
	h.operate(ctx, client, input{verb: looks}, func(ctx context.Context, conn *grpc.ClientConn) (int, error) {
		resp, err := brevetv1.NewIdentityServiceClient(conn).GetIdentity(ctx, &brevetv1.GetIdentityRequest{Id: h.id})
		return map[brevetv1.IdentityState]int{
			brevetv1.IdentityState_IDENTITY_STATE_REGISTERED: registered, brevetv1.IdentityState_IDENTITY_STATE_ENROLLED: enrolled,
			brevetv1.IdentityState_IDENTITY_STATE_SUSPENDED: suspended,
		}[resp.GetIdentity().GetState()], err
	})
}

func (h *history) ask(ctx context.Context, client int, about *holder) {
	call := h.now()
	p, err := h.w.clients.current(ctx)
	if err != nil {
		return
	}
	if state, err := h.w.ocsp(p, about.certificate); err == nil { // an answer that did not come says nothing
		h.record(client, input{verb: asks, serial: about.serial()}, output{state: state}, call, p)
	}
}

func (h *history) order() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.orders++
	return h.orders
}

// client does some things at random.
func (h *history) client(ctx context.Context, number, calls int, tokens []string, r *rand.Rand) {
	if number < len(tokens) {
		h.obtain(ctx, number, input{verb: enrolls, token: tokens[number]}, newRequest(tokens[number], newKey()), false)
	}
	for range calls {
		about := h.any(r)
		n := r.IntN(100)
		switch {
		case n < 12:
			h.suspend(ctx, number)
		case n < 30:
			h.resume(ctx, number)
		case n < 36:
			h.look(ctx, number)
		case about == nil:
			time.Sleep(time.Millisecond)
		case n < 40:
			h.revoke(ctx, number, about.serial())
		case n < 55:
			h.read(ctx, number, about.serial())
		case n < 80:
			h.ask(ctx, number, about)
		default:
			h.obtain(ctx, number, input{verb: renews, serial: about.serial()}, newRenewal(about, newKey()), r.IntN(4) == 0)
		}
	}
}

// death is when a server was killed, and when its successor served.
type death struct {
	of        *process
	dead, new int64
}

// finish gives lost operations their ends, and every certificate its restarts.
func (h *history) finish(deaths []death) {
	end := func(ops []porcupine.Operation, lost []*process) {
		for i, p := range lost {
			if p == nil {
				continue
			}
			ops[i].Return = math.MaxInt64
			for _, d := range deaths {
				if d.of == p {
					ops[i].Return = max(d.new, ops[i].Call)
				}
			}
		}
	}
	end(h.ledger, h.lost)
	end(h.subjects, h.lostSaid)
}

// of returns the operations about a certificate: those that name it, those about its identity, and the restarts.
func (h *history) of(serial string, deaths []death) []porcupine.Operation {
	var ops []porcupine.Operation
	for _, op := range h.subjects {
		if in := op.Input.(input); in.serial == serial || in.serial == "" {
			ops = append(ops, op)
		}
	}
	for _, d := range deaths {
		ops = append(ops, porcupine.Operation{ClientId: restarter, Input: input{verb: restarts}, Output: output{}, Call: d.dead, Return: d.new})
	}
	return ops
}

// restarter is the client that restarts the server.
const restarter = 99

// check returns what is not linearizable, and where to look at it.
func (h *history) check(t *testing.T, deaths []death) (faults []string) {
	t.Helper()
	judge := func(what string, m porcupine.Model, ops []porcupine.Operation) {
		result, info := porcupine.CheckOperationsVerbose(m, ops, patience)
		if result == porcupine.Ok {
			return
		}
		dir := t.TempDir()
		if h.w.plant == "" { // somebody will want to see it
			var err error
			dir, err = os.MkdirTemp("", "brevet-history-")
			must(t, err)
		}
		path := filepath.Join(dir, "history.html")
		must(t, porcupine.VisualizePath(m, info, path))
		faults = append(faults, fmt.Sprintf("%s, %d operations: %s; see %s", what, len(ops), result, path))
	}
	h.finish(deaths)
	judge("the records of "+h.id, ledgerModel(), h.ledger)
	for _, known := range h.holders {
		judge("OCSP about "+short(known.serial()), subjectModel(), h.of(known.serial(), deaths))
	}
	return faults
}

// histories has concurrent clients work on some identities, with a kill in between where kills says so.
func histories(t *testing.T, g *ground, random *rand.Rand, plant string, kills, calls int) (faults []string, operations int) {
	t.Helper()
	const identities, clients = 3, 5
	w := newWorld(t, g)
	w.plant = plant
	p := w.start(t, orders{})
	w.clients.connect(p)
	began := time.Now()
	var all []*history
	var busy sync.WaitGroup
	for i := range identities {
		h := &history{w: w, began: began}
		var err error
		h.id, err = w.clients.register(t.Context(), fmt.Sprintf("device/%d", i))
		must(t, err)
		var tokens []string
		for range 2 {
			token, err := w.clients.makeToken(t.Context(), h.id, false)
			must(t, err)
			tokens = append(tokens, token)
		}
		all = append(all, h)
		for c := range clients {
			r := child(random)
			busy.Go(func() { h.client(t.Context(), c, calls, tokens, r) })
		}
	}
	var deaths []death
	for range kills {
		time.Sleep(20*time.Millisecond + time.Duration(random.Int64N(int64(150*time.Millisecond))))
		w.clients.connect(nil)
		p.kill()
		d := death{of: p, dead: time.Since(began).Nanoseconds()}
		p = w.start(t, orders{})
		d.new = time.Since(began).Nanoseconds()
		deaths = append(deaths, d)
		w.clients.connect(p)
	}
	busy.Wait()
	for _, h := range all {
		faults = append(faults, h.check(t, deaths)...)
		operations += len(h.ledger) + len(h.subjects)
	}
	return append(faults, w.book.faults...), operations
}

func historiesAreLinearizable(t *testing.T, g *ground, random *rand.Rand) {
	end := time.Now().Add(*long)
	total, n := 0, 0
	for ; n < 3 || time.Now().Before(end); n++ {
		faults, operations := histories(t, g, random, "", n%3, 15)
		if len(faults) > 0 {
			t.Fatalf("history %d: %s", n, report(faults))
		}
		total += operations
	}
	t.Logf("%d histories, %d operations", n, total)
}

func plantedHistoriesAreNot(t *testing.T, g *ground, random *rand.Rand) {
	for _, plant := range []string{answerBeforeOrder, deafResponder} {
		t.Run(plant, func(t *testing.T) {
			for range 20 { // one history of four shows nothing of a deaf responder: it learns of orders from the log, in some ms
				if faults, _ := histories(t, g, random, plant, 0, 15); len(faults) > 0 {
					t.Logf("found: %s", report(faults))
					return
				}
			}
			t.Error("nothing was found")
		})
	}
}
