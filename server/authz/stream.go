package authz

import "context"

// authorizedEach is how many messages a stream may send before its caller is authorized again.
const authorizedEach = 100

// A Stream checks the caller of a stream again while the stream is open.
//
// If the caller sends one message and receives many, the caller is authorized with the message and again with every
// authorizedEach messages sent. Recheck authorizes the caller while nothing is sent. If the caller sends many, it is authenticated with each message received, so a revoked
// certificate ends the stream; the handler authorizes each message when it carries it out.
type Stream struct {
	authorizer *Authorizer
	operation  Operation
	client     *Client
	sendsMany  bool // the client does
	sent       int  // to a client that does not, by one goroutine
}

// NewStream returns the checks of a stream whose client sends one message, or many.
func (a *Authorizer) NewStream(op Operation, client *Client, sendsMany bool) *Stream {
	return &Stream{authorizer: a, operation: op, client: client, sendsMany: sendsMany}
}

// Received checks the caller when a message of it has arrived.
func (s *Stream) Received(ctx context.Context) error {
	if s.sendsMany {
		_, err := s.authorizer.Authenticate(s.operation, s.client)
		return err
	}
	_, err := s.authorizer.Authorize(ctx, s.operation, s.client)
	return err
}

// Recheck checks the caller again. It can run beside the other methods.
func (s *Stream) Recheck(ctx context.Context) error {
	_, err := s.authorizer.Authorize(ctx, s.operation, s.client)
	return err
}

// Sent counts a message to the caller, and checks the caller again when authorizedEach messages have been sent.
func (s *Stream) Sent(ctx context.Context) error {
	if s.sendsMany {
		return nil
	}
	if s.sent++; s.sent%authorizedEach != 0 {
		return nil
	}
	_, err := s.authorizer.Authorize(ctx, s.operation, s.client)
	return err
}
