package authz

import "context"

// authorizedEach is the number of messages that a stream may send before it authorizes the caller again.
const authorizedEach = 100

// Stream checks the caller of a stream repeatedly while the stream is open.
//
// If the caller sends one message and receives many, Stream authorizes the caller at its message, and again after every
// authorizedEach messages sent. Recheck authorizes the caller while nothing is sent. If the caller sends many messages, Stream authenticates the caller at each of them, so
// that a revocation of its certificate ends the stream. The handler authorizes each message before it takes effect.
type Stream struct {
	authorizer *Authorizer
	operation  Operation
	client     *Client
	sendsMany  bool // whether the client sends many messages
	sent       int  // messages sent to a client that sends one; used by one goroutine
}

// NewStream returns a Stream for a client that sends one message, or many.
func (a *Authorizer) NewStream(op Operation, client *Client, sendsMany bool) *Stream {
	return &Stream{authorizer: a, operation: op, client: client, sendsMany: sendsMany}
}

// Received checks the caller after a message from it has arrived.
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

// Sent counts a message to the caller, and authorizes the caller again after every authorizedEach messages.
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
