package enroll

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/brevet-pki/brevet/pki"
)

// Config configures an Agent.
type Config struct {
	Directory *Directory // required; used by this Agent only
	Authority Authority  // required
	// Token returns a token for an enrollment, or an error that wraps ErrNoToken. The Agent calls Token if it has no
	// valid credential, or if the server refused a renewal. The Agent ignores the token with which it obtained the
	// current credential. If Token is nil, there are no tokens.
	Token func() (Token, error)
	// Evidence returns the evidence for an enrollment, apart from a token: one piece, or two of different kinds without a
	// Token. The Agent calls it at each try, if it has no valid credential, so that it can read files that others replace.
	// If there is a Token, the Agent sends both, and never one of them alone. If Evidence is nil, there is none. For an
	// [Attestation], the directory must keep its keys in the TPM (see [Directory.KeepKeysIn]).
	Evidence func() ([]Evidence, error)
	// Bootstrap says how the Agent finds and authenticates the server when it enrolls. It is required if there is Evidence
	// and no Token. Otherwise it may be zero; if it is not, the Agent refuses tokens for another CA.
	Bootstrap Bootstrap
	// Identity is the identity to enroll, as a path or a SPIFFE ID. A token with a pattern needs it. If it is empty, the
	// evidence alone says which identity is enrolled.
	Identity string
	Lifetime time.Duration // requested lifetime; zero for the profile's default
	KeyType  pki.KeyType   // type of the generated keys; empty means P-256
	// Reload is a command with its arguments. The Agent runs it without a shell after each new credential or trust
	// bundle, and repeats it until it exits with 0. If Reload is empty, there is no command.
	Reload []string
	// ReloadOutput receives the output of Reload. It is a file and not a writer, because a child of the command may
	// keep it open after the command has exited. If ReloadOutput is nil, the output is discarded.
	ReloadOutput *os.File
	Log          *slog.Logger // required
}

// Agent obtains a credential and renews it. [Agent.Watch] calls a function with each new credential. Ensure, Enroll,
// Refresh and Run must not run concurrently. All other methods are safe for concurrent use.
type Agent struct {
	holder
	config Config
	now    func() time.Time

	// Only the goroutine in Ensure, Enroll, Refresh or Run uses these fields.
	broken    error     // why the credential on disk could not be loaded, or nil
	renewAt   time.Time // when to renew the current pair
	polling   polling
	obtaining retry
	reloading retry
	status    Status
}

// NewAgent returns an Agent that uses the credential in the directory, if there is one. If the credential is damaged,
// NewAgent logs an error, and treats it as absent.
func NewAgent(c Config) (*Agent, error) {
	if c.Directory == nil || c.Authority == nil || c.Log == nil {
		return nil, errors.New("an agent needs a directory, an authority and a log")
	}
	if c.Lifetime < 0 {
		return nil, fmt.Errorf("lifetime %s: give a positive duration, or leave it out for the profile's "+
			"default", c.Lifetime)
	}
	if c.Evidence != nil && c.Token == nil && c.Bootstrap.RootFingerprint == [32]byte{} {
		return nil, errors.New("an agent that enrolls without a token needs the fingerprint of the server's root")
	}
	c.KeyType = cmp.Or(c.KeyType, pki.P256)
	a := &Agent{config: c, now: time.Now, polling: polling{min: minPollInterval, max: maxPollInterval}}
	a.load()
	return a, nil
}

// load reads the status and the credential that an earlier process wrote.
func (a *Agent) load() {
	var err error
	if a.status, err = ReadStatus(a.config.Directory.path); err != nil {
		a.status = Status{} // the agent needs no status: it only reports it
	}
	pair, err := a.config.Directory.Load()
	switch {
	case err == nil:
		a.adopt(pair)
		a.startPolling(pair, true)
	case errors.Is(err, ErrNoCredential):
	default:
		a.broken = err
		a.config.Log.Error("the credential on disk is damaged, enrolling again", "error", err)
	}
	if f := a.status.Failure; f != nil && f.Final && err == nil && a.status.Serial == pair.Serial() {
		a.obtaining.tries = f.Tries // the server refused the last try; retry now, because it may accept the request
	}
	if len(a.config.Reload) == 0 {
		a.status.ReloadFailure, a.status.ReloadAt = nil, time.Time{} // the operator has removed the command
	}
	if f := a.status.ReloadFailure; f != nil {
		a.reloading.tries = f.Tries // retry now; if that fails, the delays grow from where they were
	}
}

// adopt puts a pair in use and schedules its renewal.
func (a *Agent) adopt(p *Pair) {
	a.renewAt = renewal(p)
	a.startPolling(p, false)
	a.broken = nil
	a.use(p)
}

// Ensure tries once to enroll if there is no valid credential. If there is one, it returns nil.
func (a *Agent) Ensure(ctx context.Context) error {
	if p := a.Pair(); p != nil && !p.Expired(a.now()) {
		return nil
	}
	return a.recordResult(ctx, a.obtain(ctx))
}

// Enroll tries once to enroll with the token and the configured Evidence, and replaces the current credential. After an
// error that is not a refusal, Enroll may be called again with the same token.
func (a *Agent) Enroll(ctx context.Context, t Token) error {
	o, err := a.offerWith(t)
	if err == nil {
		err = a.enroll(ctx, o)
	}
	return a.recordResult(ctx, err)
}

// Run renews the credential until the context ends, and then returns nil. It returns an error only if there is no valid
// credential, and the agent has no token that it needs or the server refused to issue a certificate.
func (a *Agent) Run(ctx context.Context) error {
	overdue := a.due() <= 0
	if overdue {
		a.delayAtStart()
	}
	a.report()
	if !overdue {
		a.followAtStart(ctx) // otherwise the next certificate comes with the trust bundle
	}
	for a.sleep(ctx) {
		if a.due() > 0 {
			a.attend(ctx)
			continue
		}
		before := a.status.Failure
		err := a.recordResult(ctx, a.obtain(ctx))
		if err == nil || a.status.Failure == before { // the canceled context caused the error
			continue
		}
		if p := a.Pair(); (p == nil || p.Expired(a.now())) && (final(err) || errors.Is(err, ErrNoToken)) {
			return err
		}
		a.logFailure()
	}
	return nil
}

// delayAtStart moves an overdue renewal of a valid certificate to a time soon after the start.
func (a *Agent) delayAtStart() {
	now := a.now().Round(0)
	if p := a.Pair(); a.obtaining.tries == 0 && p != nil && p.validAt(now) {
		a.renewAt = now.Add(startDelay(p, now))
	}
}

// attend does what is due except a certificate request: it polls the renewal window, and runs the reload command if an
// earlier run failed, or if the agent stopped before the command ran.
func (a *Agent) attend(ctx context.Context) {
	if a.pollDue() <= 0 {
		a.poll(ctx)
	}
	if a.reloadDue() <= 0 {
		a.reload(ctx)
	}
}

// sleep waits until a renewal, a poll or the reload command is due, and returns true. If the context ends first, it returns
// false. It checks the wall clock every wakeInterval, because timers stop while a device sleeps, and because clocks may
// be set.
func (a *Agent) sleep(ctx context.Context) bool {
	for {
		d := min(a.due(), a.reloadDue(), a.pollDue())
		if d <= 0 || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(d, wakeInterval))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// due returns the time until the next certificate request.
func (a *Agent) due() time.Duration {
	now := a.now()
	if a.obtaining.tries > 0 {
		return a.obtaining.due(now)
	}
	if p := a.Pair(); p == nil || p.Expired(now) || p.notYetValid(now) {
		return 0
	}
	return a.renewAt.Sub(now)
}

// reloadDue returns the time until the next run of the reload command.
func (a *Agent) reloadDue() time.Duration {
	if !a.reloadPending() {
		return math.MaxInt64
	}
	return a.reloading.due(a.now())
}

// recordResult records the result of a try, schedules the next one, and returns err.
func (a *Agent) recordResult(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return err // the canceled context caused the error, not the server
	}
	if err == nil {
		a.obtaining = retry{}
		a.status.RenewalFailure = nil
		a.report()
		a.reload(ctx)
		return nil
	}
	a.obtaining.fail(err, a.Pair(), a.now())
	a.status.Failure = a.obtaining.failure(err)
	a.report()
	return err
}

// logFailure logs the failure of the last try.
func (a *Agent) logFailure() {
	f := a.status.Failure
	attrs := []any{"error", f.Error, "tries", f.Tries, "next_try", a.obtaining.next().Format(time.RFC3339)}
	if p := a.Pair(); p != nil {
		attrs = append(attrs, "valid_until", p.Certificate.NotAfter.Format(time.RFC3339))
	}
	if f.Rule != "" {
		attrs = append(attrs, "rule", f.Rule, "hint", f.Hint)
	}
	if f.Final {
		a.config.Log.Error("the server refused the request, retrying at long intervals", attrs...)
	} else {
		a.config.Log.Warn("obtaining a certificate failed, retrying", attrs...)
	}
}

// report writes the status file. If that fails, for instance because the disk is full, the renewal continues.
func (a *Agent) report() {
	if a.obtaining.tries == 0 {
		a.status.Failure = nil
		a.status.RenewAt = a.renewAt
	} else {
		a.status.RenewAt = a.obtaining.next()
	}
	a.status.Serial = ""
	if p := a.Pair(); p != nil {
		a.status.Serial = p.Serial()
	}
	if err := a.config.Directory.writeStatus(a.status); err != nil {
		a.config.Log.Warn("writing the status file failed, it is out of date", "error", err)
	}
}

// Refresh tries once to obtain a credential, if there is none or if its renewal is due. It is for programs that run too
// briefly for Run.
func (a *Agent) Refresh(ctx context.Context) error {
	if a.due() > 0 {
		return nil
	}
	return a.recordResult(ctx, a.obtain(ctx))
}
