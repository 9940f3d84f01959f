package acme

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra/acme"
	"github.com/brevet-pki/brevet/server/acme/validation"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// challenge is a challenge in JSON (RFC 8555 §7.1.5).
type challenge struct {
	Type      acme.ChallengeType `json:"type"`
	URL       string             `json:"url"`
	Status    acme.Status        `json:"status"`
	Token     string             `json:"token"`
	Validated string             `json:"validated,omitempty"`
	Error     *problem           `json:"error,omitempty"`
}

func (d *Door) challengeOut(authorization acme.ID, c acme.Challenge) challenge {
	return challenge{
		c.Type, d.url(pathChallenge + authorization.String() + "/" + string(c.Type)), c.Status, c.Token, stamp(c.ValidatedAt), problemOf(c.Failure),
	}
}

// authorizationOut returns the response with an authorization (RFC 8555 §7.1.4).
func (d *Door) authorizationOut(a acme.Authorization) (frontdoor.Response, error) {
	challenges := []challenge{}
	for _, c := range a.Challenges {
		challenges = append(challenges, d.challengeOut(a.ID, c))
	}
	return d.object(http.StatusOK, struct {
		Identifier identifier  `json:"identifier"`
		Status     acme.Status `json:"status"`
		Expires    string      `json:"expires,omitempty"`
		Challenges []challenge `json:"challenges"`
		Wildcard   bool        `json:"wildcard,omitempty"`
	}{identifierOut(a.Identifier), a.Status, stamp(a.ExpiresAt), challenges, a.Wildcard})
}

var errAuthorization = pki.Refuse(pki.RuleACMEAuthorization, "send the request to a URL in an order of this account",
	"the account has no such authorization or challenge")

// authorization serves an authorization (RFC 8555 §7.5 and §7.5.2).
func (d *Door) authorization(ctx context.Context, r *request) (frontdoor.Response, error) {
	id, ok := acme.ParseID(r.PathValue("authorization"))
	if !ok {
		return frontdoor.Response{}, errAuthorization
	}
	read := d.config.Authorizations.Authorization
	if !r.isRead() {
		var payload struct {
			Status acme.Status `json:"status"`
		}
		if err := r.decode(&payload); err != nil {
			return frontdoor.Response{}, err
		}
		if payload.Status != acme.StatusDeactivated {
			return frontdoor.Response{}, pki.Refuse(pki.RuleRequest, "send the status deactivated, or an empty payload to read the authorization",
				"a client can only deactivate an authorization")
		}
		read = d.config.Authorizations.DeactivateAuthorization
	}
	a, err := read(ctx, r.account.ID, id)
	if err != nil {
		return frontdoor.Response{}, err
	}
	return d.authorizationOut(a)
}

// challenge serves a challenge (RFC 8555 §7.5.1). A request with a payload starts the validation.
func (d *Door) challenge(ctx context.Context, r *request) (frontdoor.Response, error) {
	id, ok := acme.ParseID(r.PathValue("authorization"))
	if !ok {
		return frontdoor.Response{}, errAuthorization
	}
	kind := acme.ChallengeType(r.PathValue("type"))
	a, err := d.config.Authorizations.Authorization(ctx, r.account.ID, id)
	if err != nil {
		return frontdoor.Response{}, err
	}
	if a.Challenge(kind) == nil {
		return frontdoor.Response{}, errAuthorization
	}
	if !r.isRead() {
		if err := r.decode(&struct{}{}); err != nil {
			return frontdoor.Response{}, err
		}
	}
	if !r.isRead() && a.Status == acme.StatusPending {
		if a, err = d.startValidation(ctx, r.account, a, kind); err != nil {
			return frontdoor.Response{}, err
		}
	}
	c := a.Challenge(kind)
	if c == nil {
		return frontdoor.Response{}, errAuthorization
	}
	resp, err := d.object(http.StatusOK, d.challengeOut(a.ID, *c))
	if err != nil {
		return resp, err
	}
	resp.Header.Add("Link", link(d.url(pathAuthorization+a.ID.String()), "up"))
	return resp, nil
}

// startValidation starts the validation of a challenge, unless it runs already or has ended, and waits a short time for its
// result. First it reserves it in the pool, so that no challenge is marked as processing that nothing validates.
func (d *Door) startValidation(ctx context.Context, account acme.Account, a acme.Authorization, kind acme.ChallengeType) (acme.Authorization, error) {
	job, err := d.pool.Reserve(account.ID, a.Identifier)
	if err != nil {
		return a, err
	}
	isStarted := false
	defer func() {
		if !isStarted { // also after a panic
			job.Drop()
		}
	}()
	begun, starts, err := d.config.Authorizations.BeginValidation(ctx, account.ID, a.ID, kind)
	if err != nil || !starts {
		return begun, err
	}
	c := validation.Challenge{Type: kind, Identifier: begun.Identifier, Token: begun.Challenge(kind).Token, Thumbprint: account.Thumbprint}
	ended := make(chan acme.Authorization, 1)
	isStarted = true
	job.Start(func(ctx context.Context) {
		started := time.Now()
		failure := d.validate(ctx, c)
		if failure != nil && ctx.Err() != nil {
			return // the server stops: the client starts the validation again
		}
		d.config.Meter.Validated(string(kind), failure, time.Since(started))
		if a, ok := d.endValidation(ctx, begun.ID, kind, failure); ok {
			ended <- a
		}
	}, func(ctx context.Context) {
		failure := pki.Refuse(pki.RuleOverloaded, "create a new order later, and validate fewer names at a time",
			"the server had too many validations to begin this one in time")
		d.config.Meter.Validated(string(kind), failure, 0)
		d.endValidation(ctx, begun.ID, kind, failure)
	})
	return d.await(ctx, begun, ended), nil
}

const (
	// awaitTimeout is the time for which the response to a challenge waits for the result of the validation. Most hosts
	// respond faster.
	awaitTimeout = 100 * time.Millisecond
	// maxAwaits is the number of requests that wait at a time. They are a part of those that run, so that slow hosts do not
	// keep the requests of other clients from running.
	maxAwaits = 16
)

// await returns the authorization with the result of its validation if that ends soon, so that the client need not poll.
// Otherwise it returns begun.
func (d *Door) await(ctx context.Context, begun acme.Authorization, ended <-chan acme.Authorization) acme.Authorization {
	select {
	case d.awaits <- struct{}{}:
		defer func() { <-d.awaits }()
	default:
		return begun
	}
	timeout := time.NewTimer(awaitTimeout)
	defer timeout.Stop()
	select {
	case a := <-ended:
		return a
	case <-timeout.C:
	case <-ctx.Done():
	}
	return begun
}

// validate validates a challenge. If that panics, the validation has failed.
func (d *Door) validate(ctx context.Context, c validation.Challenge) (failure *pki.Refusal) {
	defer func() {
		if panicked := recover(); panicked != nil {
			d.config.Log.ErrorContext(ctx, "an ACME validation panicked", "challenge", string(c.Type), "name", c.Identifier.Value,
				"panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
			failure = pki.Refuse(pki.RuleACMEValidationDial, "report this to the operator of the server, and create a new order",
				"the server could not finish the validation, because of a fault of its own")
		}
	}()
	return d.config.Validator.Validate(ctx, c)
}

// Limits of recording the result of a validation.
const (
	recordTries   = 5
	recordTimeout = 10 * time.Second
)

// endValidation records the result of a validation, and returns the authorization, unless that fails. The server may stop
// during that time.
func (d *Door) endValidation(
	ctx context.Context, id acme.ID, kind acme.ChallengeType, failure *pki.Refusal,
) (a acme.Authorization, ok bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	var err error
	for try := range recordTries {
		if a, err = d.config.Authorizations.EndValidation(ctx, id, kind, failure); err == nil || !pki.IsTemporary(err) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try+1) * 200 * time.Millisecond):
		}
	}
	if _, isRefusal := pki.AsRefusal(err); err != nil && !isRefusal {
		d.config.Log.ErrorContext(ctx, "recording the result of an ACME validation failed, the client must start it again",
			"authorization", id.String(), "challenge", string(kind), "error", err)
	}
	return a, err == nil
}
