-- Await the nodes that have not given back for as long again.
local function await() call('EXPIRE', P .. 'awaited', 5) end
