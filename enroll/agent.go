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

// Config says what an Agent works with.
type Config struct {
	Directory *Directory // required; the Agent is its one user
	Authority Authority  // required
	// Token returns a token to enroll with, or an error that is ErrNoToken. It is asked when there is no valid
	// credential, or when a renewal was refused; a token that the present credential came from is passed over. Nil
	// has none.
	Token    func() (Token, error)
	Lifetime time.Duration // to ask for; zero for the profile's default
	KeyType  pki.KeyType   // of the keys that the agent makes; empty for P-256
	// Reload is a command and its arguments, run without a shell after each new credential until it exits with 0; empty
	// for none.
	Reload []string
	// ReloadOutput gets what Reload writes. The command and its children keep it open for as long as they run, so it is
	// a file. Nil discards.
	ReloadOutput *os.File
	// OnChange is called with each credential that comes into use, the one found on disk included, in order. Nil for nobody.
	OnChange func(*Pair)
	Log      *slog.Logger // required
}

// Agent obtains a credential and keeps it fresh. Ensure, Enroll and Run are for one goroutine at a time; all other
// methods are safe for concurrent use.
type Agent struct {
	holder
	config Config
	now    func() time.Time

	// owned by the goroutine in Ensure, Enroll or Run
	broken    error     // why the credential on disk did not load, or nil
	renewAt   time.Time // of the pair in use
	obtaining retry
	reloading retry
	status    Status
}

// NewAgent returns an Agent with the credential that the directory holds, if there is one. A damaged credential is
// logged and counts as none.
func NewAgent(c Config) (*Agent, error) {
	if c.Directory == nil || c.Authority == nil || c.Log == nil {
		return nil, errors.New("enroll: an agent needs a directory, an authority and a log")
	}
	if c.Lifetime < 0 {
		return nil, fmt.Errorf("enroll: a lifetime of %s cannot be: leave it out for the profile's default", c.Lifetime)
	}
	c.KeyType = cmp.Or(c.KeyType, pki.P256)
	a := &Agent{config: c, now: time.Now}
	a.load()
	return a, nil
}

func (a *Agent) load() {
	var err error
	if a.status, err = ReadStatus(a.config.Directory.path); err != nil {
		a.status = Status{} // nothing depends on it
	}
	pair, err := a.config.Directory.Load()
	switch {
	case err == nil:
		a.adopt(pair)
	case errors.Is(err, ErrNoCredential):
	default:
		a.broken = err
		a.config.Log.Error("the credential on disk is damaged: enrolling anew needs a token", "error", err)
	}
	if f := a.status.Failure; f != nil && f.Final && err == nil && a.status.Serial == pair.Serial() {
		a.obtaining.tries = f.Tries // refused before the restart: ask at once whether that still holds
	}
	if len(a.config.Reload) == 0 {
		a.status.ReloadFailure, a.status.ReloadAt = nil, time.Time{} // the command was taken out of the configuration
	}
	if f := a.status.ReloadFailure; f != nil {
		a.reloading.tries = f.Tries // the next try comes at once, and the waits after it go on growing
	}
}

// adopt brings a pair into use.
func (a *Agent) adopt(p *Pair) {
	a.renewAt = renewal(p)
	a.pair.Store(p)
	a.broken = nil
	if a.config.OnChange != nil {
		a.config.OnChange(p)
	}
}

// Ensure returns nil where there is a valid credential. Where there is none it enrolls, in one try.
func (a *Agent) Ensure(ctx context.Context) error {
	if p := a.Pair(); p != nil && !p.Expired(a.now()) {
		return nil
	}
	return a.settled(ctx, a.obtain(ctx))
}

// Enroll spends a token, in one try, and puts the new credential in the place of one that may be there. After an
// error that is no refusal, the same token may be used again.
func (a *Agent) Enroll(ctx context.Context, t Token) error {
	return a.settled(ctx, a.enroll(ctx, t))
}

// Run keeps the credential fresh until the context ends, which is no error. It returns an error only when there is no
// valid credential and no way to one: no token, or a token that is refused.
func (a *Agent) Run(ctx context.Context) error {
	a.report()
	for a.sleep(ctx) {
		if a.due() > 0 {
			a.reload(ctx) // which failed, or the process ended before it
			continue
		}
		err := a.settled(ctx, a.obtain(ctx))
		if err == nil || ctx.Err() != nil {
			continue
		}
		if p := a.Pair(); (p == nil || p.Expired(a.now())) && (final(err) || errors.Is(err, ErrNoToken)) {
			return err
		}
		a.complain()
	}
	return nil
}

// sleep returns true when there is something to do, and false when the context has ended. It looks at the wall clock
// now and then: timers stand still while a device sleeps, and clocks are set.
func (a *Agent) sleep(ctx context.Context) bool {
	for {
		d := min(a.due(), a.reloadDue())
		if d <= 0 || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(d, glance))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// due returns how long it is until the next certificate is asked for.
func (a *Agent) due() time.Duration {
	now := a.now()
	if a.obtaining.tries > 0 {
		return a.obtaining.due(now)
	}
	if p := a.Pair(); p == nil || p.Expired(now) || p.early(now) {
		return 0
	}
	return a.renewAt.Sub(now)
}

// reloadDue returns how long it is until the reload command runs again.
func (a *Agent) reloadDue() time.Duration {
	if !a.reloadPending() {
		return math.MaxInt64
	}
	return a.reloading.due(a.now())
}

// settled records how a try ended, plans the next, and hands the error on.
func (a *Agent) settled(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return err // an error of our own making
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

// complain logs the failure of the last try.
func (a *Agent) complain() {
	f := a.status.Failure
	attrs := []any{"error", f.Error, "tries", f.Tries, "next_try", a.obtaining.next().Format(time.RFC3339)}
	if p := a.Pair(); p != nil {
		attrs = append(attrs, "valid_until", p.Certificate.NotAfter.Format(time.RFC3339))
	}
	if f.Rule != "" {
		attrs = append(attrs, "rule", f.Rule, "fix", f.Hint)
	}
	if f.Final {
		a.config.Log.Error("the server refuses: asking again only now and then", attrs...)
	} else {
		a.config.Log.Warn("no new certificate yet: trying again", attrs...)
	}
}

// report writes the status file. A disk that is full stops no renewal here.
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
		a.config.Log.Warn("the status file is out of date", "error", err)
	}
}

// Refresh obtains a credential where there is none or where the time to renew has come, in one try. It is for programs
// that live too briefly to Run.
func (a *Agent) Refresh(ctx context.Context) error {
	if a.due() > 0 {
		return nil
	}
	return a.settled(ctx, a.obtain(ctx))
}
