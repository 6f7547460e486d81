SELECT work_for_50ms(:client_id);
